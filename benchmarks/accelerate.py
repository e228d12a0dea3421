"""Cases of other libraries' models, unmodified: a training step with and without ``pspnet_fast.accelerate``.

Peers are the stock model with its loss, eager and under ``torch.compile``. Weights are random.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspnet_fast
from benchmarks.case import Call, Case, Floor, Place, Results, blocky_labels, dimensions
from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED, compiled, is_ours
from tests.plain_pspnet import PlainPSPNet


def _transformers(name: str, *, classes: int, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=classes, **options)
    return getattr(transformers, f"{name}ForSemanticSegmentation")(config)


def _upernet(backbone: str, *, classes: int, **options: Any) -> nn.Module:
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = getattr(transformers, f"{backbone}Config")(out_features=stages, **options)
    return _transformers("UperNet", classes=classes, backbone_config=config, auxiliary_in_channels=384)


def _smp(name: str, encoder: str, *, classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder, encoder_weights=None, classes=classes)


def _torchvision(name: str, *, classes: int, **options: Any) -> nn.Module:
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes, **options)


B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
BEIT = {"image_size": 512, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
BEIT |= {"out_indices": [3, 5, 7, 11], "use_relative_position_bias": True}
CONVNEXT = {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}
TRANSFORMERS, SMP, TORCHVISION = "transformers", "segmentation_models_pytorch", "torchvision"
# Each model's package, and what makes it for a number of ``classes``.
MODELS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "segformer-b0": (TRANSFORMERS, functools.partial(_transformers, "Segformer")),
    "segformer-b2": (TRANSFORMERS, functools.partial(_transformers, "Segformer", **B2)),
    "upernet-convnext": (TRANSFORMERS, functools.partial(_upernet, "ConvNext", **CONVNEXT)),
    "upernet-swin": (TRANSFORMERS, functools.partial(_upernet, "Swin")),
    "beit": (TRANSFORMERS, functools.partial(_transformers, "Beit", **BEIT)),
    "mobilevit": (TRANSFORMERS, functools.partial(_transformers, "MobileViT", output_stride=16)),
    "mobilenetv2": (TRANSFORMERS, functools.partial(_transformers, "MobileNetV2", output_stride=16)),
    "dpt": (TRANSFORMERS, functools.partial(_transformers, "DPT", image_size=512, is_hybrid=False)),
    "smp-segformer": (SMP, functools.partial(_smp, "Segformer", "mit_b0")),
    "smp-pspnet": (SMP, functools.partial(_smp, "PSPNet", "resnet50")),
    "smp-upernet": (SMP, functools.partial(_smp, "UPerNet", "resnet50")),
    "smp-deeplabv3plus": (SMP, functools.partial(_smp, "DeepLabV3Plus", "resnet50")),
    "lraspp": (TORCHVISION, functools.partial(_torchvision, "lraspp_mobilenet_v3_large")),
    "deeplabv3": (TORCHVISION, functools.partial(_torchvision, "deeplabv3_resnet50", aux_loss=True)),
    "fcn": (TORCHVISION, functools.partial(_torchvision, "fcn_resnet50", aux_loss=True)),
    "plain-pspnet50": ("torch", functools.partial(PlainPSPNet, 50)),
}


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss as each library's users compute it."""
    if isinstance(model, PlainPSPNet):
        _, main, aux = model(images, labels)
        return main + 0.4 * aux
    if type(model).__module__.startswith("transformers."):
        return model(pixel_values=images, labels=labels).loss
    outputs = model(images)
    outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
    losses = {name: F.cross_entropy(logits, labels, ignore_index=255) for name, logits in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


def fused_loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """:func:`loss_of` to be compiled, where the loss is fused inside a block."""
    with pspnet_fast.fuse():
        return loss_of(model, images, labels)


def build(name: str, classes: int, batch: int, size: int, place: Place, peer: str) -> Call:
    """A training step: forward, loss, backward; returns the loss."""
    torch.manual_seed(0)
    model = MODELS[name][1](classes=classes).to(place.device).train()
    for module in model.modules():  # without dropout, so that the peers' losses can be compared
        for attribute in ("p", "drop_prob"):
            if "drop" in type(module).__name__.lower() and hasattr(module, attribute):
                setattr(module, attribute, 0.0)
    images = Place(place.device).normal(batch, 3, size, size)
    labels = blocky_labels(batch, size, size, classes, place.device)
    if is_ours(peer):
        pspnet_fast.accelerate(model)
    if peer == OURS_COMPILED:
        compute = torch.compile(fused_loss_of, dynamic=False, options=pspnet_fast.compile_options())
    else:
        compute = compiled(loss_of, peer)

    def step() -> Results:
        model.zero_grad()
        with place.autocast():
            loss = compute(model, images, labels)
        loss.backward()
        return (loss.detach(),)

    return step


def cases(device: str, *, quick: bool = False) -> Iterator[Case]:
    """Every model with 19 and 150 classes; ``quick``: one small model, as it is and on small images."""
    place = Place(device) if device == "cpu" else Place(device, torch.bfloat16)
    batch, size = (2, 64) if quick else (2, 512) if device == "cpu" else (8, 512)
    for name in ["lraspp"] if quick else MODELS:
        package = MODELS[name][0]
        absent = importlib.util.find_spec(package) is None
        for classes in (19,) if quick else (19, 150):
            peers = (EAGER, OURS) if quick else (EAGER, COMPILE, OURS, OURS_COMPILED)
            yield Case(
                operator="accelerate",
                labels={"model": name, **place.labels(f"{dimensions(batch, 3, size, size)}, {classes} classes")},
                device=device,
                peers=peers,
                build=functools.partial(build, name, classes, batch, size, place),
                floor=Floor(0, 0),
                tolerance=1e-3 if device == "cpu" else 0.05,
                graph=False,
                skipped=dict.fromkeys(peers, f"not installed: {package}") if absent else {},
            )
