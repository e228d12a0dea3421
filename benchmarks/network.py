"""Cases of the whole network: a training step of PSPNet, and inference to labels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pspnet_fast
from benchmarks.case import LAYOUTS, Batches, Call, Case, Floor, Place, Results, blocky_labels, dimensions
from benchmarks.losses import AUX_WEIGHT
from benchmarks.peers import COMPILE, EAGER, MAX_AUTOTUNE, OPTIMIZED, OURS, OURS_COMPILED, compiled, is_ours
from benchmarks.pyramid import BINS, CELLS
from tests.plain_pspnet import PlainPSPNet

OPERATORS = {"training": "training_step", "inference": "inference"}
COLUMNS = 3 * sum(BINS)


@dataclass(frozen=True)
class Setting:
    """What is run: the network, its images, layout and precision (bfloat16: autocast)."""

    layers: int
    classes: int
    batch: int
    size: tuple[int, int]
    place: Place

    @property
    def shape(self) -> str:
        return f"PSPNet{self.layers}, {dimensions(self.batch, 3, *self.size)}, {self.classes} classes"

    def images(self) -> torch.Tensor:
        """Random images in float32."""
        return replace(self.place, dtype=torch.float32).normal(self.batch, 3, *self.size)


def network(peer: str, setting: Setting, stock: nn.Module | None = None) -> nn.Module:
    """The stock network or this package's, with the weights of ``stock``; by default with random ones."""
    net = stock_network(setting) if stock is None else stock
    if is_ours(peer):
        weights = net.state_dict()
        net = pspnet_fast.PSPNet(layers=setting.layers, classes=setting.classes, pretrained=False)
        net.load_state_dict(weights)
    return net.to(setting.place.device, memory_format=LAYOUTS[setting.place.layout])


def evaluated_network(peer: str, setting: Setting) -> nn.Module:
    """:func:`network` in evaluation, whose labels differ from pixel to pixel, so that comparing them shows an error.

    With random weights and no training one class is the largest nearly everywhere. Batch normalisation takes its
    statistics from random images here, and all classes' logits get mean 0 and deviation 1.
    """
    stock = stock_network(setting)
    images = Place().normal(2, 3, 65, 65)
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of all batches: of the one that follows
    with torch.no_grad():
        stock.train()(images, torch.zeros(2, 65, 65, dtype=torch.int64))
        deviation, mean = torch.std_mean(stock.eval()(images), dim=(0, 2, 3))
        stock.cls[4].weight.div_(deviation.view(-1, 1, 1, 1))
        stock.cls[4].bias.sub_(mean).div_(deviation)
    return network(peer, setting, stock).eval()


def stock_network(setting: Setting) -> PlainPSPNet:
    """The stock network with random weights."""
    torch.manual_seed(0)
    return PlainPSPNet(layers=setting.layers, classes=setting.classes)


def build_training(setting: Setting, peer: str, net: nn.Module | None = None) -> Call:
    """A training step: forward, both losses, backward; returns the loss. The optimizer is the same for all."""
    net = (net or network(peer, setting)).train()
    call = compiled(net, peer)
    x = setting.images()
    y = blocky_labels(setting.batch, *setting.size, setting.classes, setting.place.device)

    def step() -> Results:
        torch.manual_seed(0)  # the same dropout for all that draw it alike
        with setting.place.autocast():
            _, main, aux = call(x, y)
            loss = main + AUX_WEIGHT * aux
        loss.backward()
        loss = loss.detach().clone()
        net.zero_grad(set_to_none=True)
        return (loss,)

    return step


def build_inference(setting: Setting, peer: str) -> Call:
    """The labels of images at their full size."""
    net = evaluated_network(peer, setting)
    if peer.startswith(OPTIMIZED):
        net = net.optimize_for_inference()
    labels_of = compiled(net.predict if is_ours(peer) else lambda x: net(x).argmax(dim=1), peer)
    x = setting.images()

    @torch.inference_mode()
    def predict() -> Results:
        with setting.place.autocast():
            return (labels_of(x),)

    return predict


def network_flops(setting: Setting, mode: str) -> int:
    """The stock network's convolutions and products, with the head's convolution split as this package has it."""
    pair = replace(setting, batch=2, place=Place())  # one image has no batch statistics
    return _flops(pair, mode == "training") * setting.batch // 2


@functools.cache
def _flops(setting: Setting, training: bool) -> int:
    with torch.device("meta"):
        net = stock_network(setting).train(training)
        x = torch.zeros(setting.batch, 3, *setting.size)
        y = torch.zeros(setting.batch, *setting.size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        if training:
            _, main, aux = net(x, y)
            (main + aux).backward()
        else:
            net(x)
    channels, out = net.cls[0].in_channels // 2, net.cls[0].out_channels
    pixels = setting.batch * ((setting.size[0] - 1) // 8 + 1) * ((setting.size[1] - 1) // 8 + 1)
    upsampled = 9 * channels * out * pixels
    instead = 9 * setting.batch * CELLS * out * channels // 4 + COLUMNS * out * pixels
    return counter.get_total_flops() - (3 if training else 1) * 2 * (upsampled - instead)


def case(setting: Setting, mode: str, *, autotuned: bool = False) -> Case:
    """A training step, or inference; ``autotuned``: compared with torch.compile's longest search, and that alone.

    The floor is arithmetic alone: what must pass through memory depends on the caches.
    """
    place, training = setting.place, mode == "training"
    extra = {"compiled": "max-autotune"} if autotuned else {}
    return Case(
        operator=OPERATORS[mode],
        labels={**place.labels(setting.shape, backward=training), **extra},
        device=place.device,
        peers=(OURS, MAX_AUTOTUNE) if autotuned else (EAGER, COMPILE, OURS, OURS_COMPILED),
        build=functools.partial(build_training if training else build_inference, setting),
        floor=Floor(0, network_flops(setting, mode), place.dtype_name),
        # Dropout is drawn anew by torch.compile, and random weights leave many pixels undecided in half precision.
        tolerance=0.05 if training else 0.2 if place.dtype == torch.bfloat16 else 1e-3,
        graph=False,
    )


def end_to_end(setting: Setting, mode: str, second_batch: int) -> Case:
    """The same with its memory over the batch, measured at the setting's batch and at ``second_batch``.

    Gradients are the call's own, as they are created and freed in it.
    """
    with torch.device("meta"):
        net = stock_network(setting)
    parameters, statistics = (sum(t.nbytes for t in tensors) for tensors in (net.parameters(), net.buffers()))
    momentum, label_bytes = (parameters, 8) if mode == "training" else (0, 0)
    batches = Batches(
        at=functools.partial(at_batch, setting, mode),
        sizes=(setting.batch, second_batch),
        least=2 if mode == "training" else 1,  # batch normalisation over the 1x1 level cannot train on one image
        weights_bytes=parameters + statistics + momentum,
        image_bytes=(3 * 4 + label_bytes) * setting.size[0] * setting.size[1],
    )
    facts = {"mode": mode, "layers": setting.layers, "classes": setting.classes, "size": setting.size[0]}
    plain = case(setting, mode)
    return replace(plain, labels={**facts, "batch": setting.batch, **plain.labels}, batches=batches)


def at_batch(setting: Setting, mode: str, batch: int) -> Case:
    return case(replace(setting, batch=batch), mode)
