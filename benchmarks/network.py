"""Cases of the whole network: a training step of PSPNet, and inference to labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pspnet_fast
from benchmarks.case import (
    COMPILE,
    EAGER,
    LAYOUTS,
    MAX_AUTOTUNE,
    OURS,
    OURS_COMPILED,
    Call,
    Case,
    Results,
    as_training,
    blocky_labels,
    compiled,
    dimensions,
    dtype_name,
    is_ours,
    normal,
)
from benchmarks.ceilings import Floor
from tests.plain_pspnet import PlainPSPNet

AUX_WEIGHT = 0.4
CELLS, COLUMNS = 1 + 4 + 9 + 36, 3 * (1 + 2 + 3 + 6)


@dataclass(frozen=True)
class Setting:
    """What is run: the network, its input, layout and precision (bfloat16: autocast)."""

    layers: int
    classes: int
    batch: int
    size: tuple[int, int]
    layout: str
    dtype: torch.dtype
    device: str


def cases(device: str, *, quick: bool) -> list[Case]:
    """The network's cases for a device."""
    if quick:
        small = Setting(18, 19, 2, (57, 57), "channels_last", torch.float32, device)
        return [training_case(small), inference_case(small)]
    if device == "cpu":
        city, ade = (Setting(50, classes, 2, (473, 473), "NCHW", torch.float32, device) for classes in (19, 150))
        infer = Setting(50, 19, 1, (1024, 2048), "channels_last", torch.float32, device)
        return [training_case(city), training_case(ade), inference_case(infer)]
    train = Setting(50, 150, 16, (473, 473), "channels_last", torch.bfloat16, device)
    infer = Setting(50, 19, 1, (1024, 2048), "channels_last", torch.bfloat16, device)
    # The autotuned ones last and by themselves, as the search takes minutes.
    return [
        training_case(train),
        inference_case(infer),
        training_case(train, autotuned=True),
        inference_case(infer, autotuned=True),
    ]


def network(peer: str, setting: Setting) -> nn.Module:
    """The stock network or this package's, with the same weights."""
    torch.manual_seed(0)
    net: nn.Module = PlainPSPNet(layers=setting.layers, classes=setting.classes)
    if is_ours(peer):
        weights = net.state_dict()
        net = pspnet_fast.PSPNet(layers=setting.layers, classes=setting.classes, pretrained=False)
        net.load_state_dict(weights)
    return net.to(setting.device, memory_format=LAYOUTS[setting.layout])  # type: ignore[call-overload]


def training_step(peer: str, setting: Setting) -> Call:
    """Makes one training step: forward, both losses, backward; returns the loss. The optimizer is nobody's work."""
    net = network(peer, setting).train()
    call = compiled(net, peer)
    x = normal(setting.batch, 3, *setting.size, device=setting.device, layout=setting.layout)
    y = blocky_labels(setting.batch, *setting.size, setting.classes, setting.device)

    def step() -> Results:
        torch.manual_seed(0)  # the same dropout for all that draw it alike
        with as_training(setting.device, setting.dtype):
            _, main, aux = call(x, y)
            loss = main + AUX_WEIGHT * aux
        loss.backward()
        loss = loss.detach().clone()
        net.zero_grad(set_to_none=True)
        return (loss,)

    return step


def inference(peer: str, setting: Setting) -> Call:
    """Makes the labels of images at their full size."""
    net = network(peer, setting).eval()
    labels_of = compiled(net.predict if is_ours(peer) else lambda x: net(x).argmax(dim=1), peer)
    x = normal(setting.batch, 3, *setting.size, device=setting.device, layout=setting.layout)

    @torch.inference_mode()
    def predict() -> Results:
        with as_training(setting.device, setting.dtype):
            return (labels_of(x),)

    return predict


def network_flops(setting: Setting, *, training: bool) -> int:
    """The stock network's convolutions and products, with the head's convolution split as this package has it."""
    with torch.device("meta"):
        net = PlainPSPNet(layers=setting.layers, classes=setting.classes).train(training)
        x = torch.zeros(setting.batch, 3, *setting.size)
        y = torch.zeros(setting.batch, *setting.size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        if training:
            _, main, aux = net(x, y)
            (main + aux).backward()
        else:
            net(x)
    convolution = cast(nn.Conv2d, net.cls[0])
    channels, out = convolution.in_channels // 2, convolution.out_channels
    pixels = setting.batch * ((setting.size[0] - 1) // 8 + 1) * ((setting.size[1] - 1) // 8 + 1)
    upsampled = 9 * channels * out * pixels
    instead = 9 * setting.batch * CELLS * out * channels // 4 + COLUMNS * out * pixels
    return counter.get_total_flops() - (3 if training else 1) * 2 * (upsampled - instead)


def _case(operator: str, direction: str, setting: Setting, autotuned: bool) -> Case:
    """A case whose floor is arithmetic alone: what must pass through memory depends on the caches."""
    return Case(
        operator=operator,
        labels={
            "shape": f"PSPNet{setting.layers}, {dimensions(setting.batch, 3, *setting.size)}, "
            f"{setting.classes} classes",
            "dtype": dtype_name(setting.dtype),
            "layout": setting.layout,
            "direction": direction,
            **({"compiled": "max-autotune"} if autotuned else {}),
        },
        device=setting.device,
        peers=(OURS, MAX_AUTOTUNE) if autotuned else (EAGER, COMPILE, OURS, OURS_COMPILED),
        build=lambda peer: (training_step if operator == "training_step" else inference)(peer, setting),
        floor=Floor(0, network_flops(setting, training=operator == "training_step"), dtype_name(setting.dtype)),
        # Dropout is drawn anew by torch.compile, and random weights leave many pixels undecided in half precision.
        tolerance=0.05 if operator == "training_step" else 0.2 if setting.dtype == torch.bfloat16 else 1e-3,
        graph=False,
    )


def training_case(setting: Setting, *, autotuned: bool = False) -> Case:
    """One training step; ``autotuned``: beside torch.compile's longest search for fast kernels, and that alone."""
    return _case("training_step", "forward + backward", setting, autotuned)


def inference_case(setting: Setting, *, autotuned: bool = False) -> Case:
    """From images to labels."""
    return _case("inference", "forward", setting, autotuned)
