"""Small models of other libraries, from configurations with random weights: ``build(name)``, and a training step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_pspnet import PlainPSPNet
from torch import Tensor, nn

CLASSES = 19
LIBRARIES = {"transformers", "accelerate", "segmentation_models_pytorch", "torchvision", "lightning"}
EXPECTED = set(filter(None, os.environ.get("PSPNET_FAST_EXPECT_LIBRARIES", "").split(",")))


def require(*libraries: str) -> None:
    """Skips the test where one is not installed; fails where PSPNET_FAST_EXPECT_LIBRARIES, a list, names it."""
    missing = {name for name in libraries if importlib.util.find_spec(name) is None}
    if missing & EXPECTED:
        pytest.fail(f"{', '.join(sorted(missing & EXPECTED))} expected, but not installed")
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} not installed")


def _transformers(name: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
    return getattr(transformers, f"{name}ForSemanticSegmentation")(config)


SIZES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
VIT = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 4}
BEIT = {**VIT, "image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4], "use_relative_position_bias": True}


def _upernet(backbone: str, channels: int, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{backbone}Config")(
        **options, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    head = {"hidden_size": 16, "auxiliary_in_channels": channels, "auxiliary_channels": 8}
    return _transformers("UperNet", backbone_config=config, **head)


def _dpt() -> nn.Module:
    neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16}
    return _transformers("DPT", **VIT, **neck, image_size=64, patch_size=16, is_hybrid=False)


def _mobilevit() -> nn.Module:
    sizes = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "aspp_out_channels": 16}
    return _transformers("MobileViT", **sizes, image_size=64, output_stride=16)


def _smp(name: str, encoder: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder, encoder_weights=None, classes=CLASSES, **options)


def torchvision_model(name: str, classes: int = CLASSES, **options: Any) -> nn.Module:
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes, **options)


def _fcn() -> nn.Module:
    """torchvision's FCN with its auxiliary head, on a ResNet of three blocks."""
    from torchvision.models import resnet
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    backbone = resnet.ResNet(resnet.Bottleneck, [1] * 4, replace_stride_with_dilation=[False, True, True])
    features = IntermediateLayerGetter(backbone, {"layer3": "out", "layer2": "aux"})
    return FCN(features, FCNHead(1024, CLASSES), FCNHead(512, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformers-segformer": lambda: _transformers(
        "Segformer", **SIZES, num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32
    ),
    "transformers-upernet-convnext": lambda: _upernet("ConvNext", 24, **SIZES),
    "transformers-upernet-swin": lambda: _upernet("Swin", 32, **SWIN),
    "transformers-beit": lambda: _transformers("Beit", **BEIT),
    "transformers-data2vec": lambda: _transformers("Data2VecVision", **BEIT),
    "transformers-dpt": _dpt,
    "transformers-mobilevit": _mobilevit,
    "transformers-mobilenetv2": lambda: _transformers("MobileNetV2", depth_multiplier=0.35, output_stride=8),
    "segmentation_models_pytorch-segformer": lambda: _smp("Segformer", "mit_b0"),
    "segmentation_models_pytorch-pspnet": lambda: _smp("PSPNet", "resnet18", psp_out_channels=32),
    "segmentation_models_pytorch-upernet": lambda: _smp("UPerNet", "resnet18", decoder_channels=32),
    "segmentation_models_pytorch-deeplabv3plus": lambda: _smp("DeepLabV3Plus", "resnet18", decoder_channels=16),
    "segmentation_models_pytorch-deeplabv3": lambda: _smp("DeepLabV3", "resnet18", decoder_channels=16),
    "segmentation_models_pytorch-fpn": lambda: _smp("FPN", "resnet18"),
    "segmentation_models_pytorch-unet": lambda: _smp("Unet", "resnet18"),
    "torchvision-lraspp": lambda: torchvision_model("lraspp_mobilenet_v3_large"),
    "torchvision-deeplabv3": lambda: torchvision_model("deeplabv3_mobilenet_v3_large", aux_loss=True),
    "torchvision-fcn": _fcn,
    "plain-pspnet": lambda: PlainPSPNet(18, classes=CLASSES),
}


def build(name: str) -> nn.Module:
    """The model, without dropout: it would draw different numbers where two runs are compared."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        for attribute in ("p", "drop_prob"):
            if "drop" in type(module).__name__.lower() and hasattr(module, attribute):
                setattr(module, attribute, 0.0)
    return model


def require_library_of(name: str) -> None:
    if not name.startswith("plain"):
        require(name.split("-")[0])


def training_step(name: str, model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss as the library's users compute it, and the logits."""
    if name.startswith("transformers"):
        result = model(pixel_values=x, labels=target)
        return result.loss, result.logits
    if name.startswith("plain") and model.training:
        labels, main, aux = model(x, target)
        return main + 0.4 * aux, F.one_hot(labels, CLASSES)
    out = model(x)
    if not isinstance(out, dict):
        return nn.CrossEntropyLoss(ignore_index=255)(out, target), out
    # As the criterion of torchvision's reference script.
    losses = {key: F.cross_entropy(value, target, ignore_index=255) for key, value in out.items()}
    return losses["out"] + 0.5 * losses.get("aux", 0), out["out"]


def data(dtype: torch.dtype, size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, size, size, generator=generator).to(dtype)
    target = torch.randint(0, CLASSES, (2, size, size), generator=generator)
    target[:, :5] = 255
    return x, target
