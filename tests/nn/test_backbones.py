"""Backbones of torchvision and timm by name."""

from __future__ import annotations

import copy

import pytest
import torch
from network_pairs import make_batch, training_step
from torch import nn

from pspnet_fast.nn import PSPNet


def tiny(backbone: str, **arguments: object) -> PSPNet:
    return PSPNet(backbone=backbone, classes=3, pretrained=False, **arguments)


def test_torchvision_resnet() -> None:
    models = pytest.importorskip("torchvision.models")
    net = tiny("resnet50")
    original = models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    net.layer0.load_state_dict({**original.conv1.state_dict(prefix="0."), **original.bn1.state_dict(prefix="1.")})
    for i in (1, 2, 3, 4):
        net.get_submodule(f"layer{i}").load_state_dict(original.get_submodule(f"layer{i}").state_dict())

    x, y = make_batch(batch=2, size=(41, 33), dtype=torch.float32)
    assert net.eval()(x).shape == (2, 3, 41, 33)
    assert net.low_resolution_logits(x).shape == (2, 3, 6, 5)
    features = original.eval()
    features.avgpool = features.fc = nn.Identity()
    torch.testing.assert_close(net._features(x)[1].flatten(1), features(x))

    step = training_step(net, x, y)
    assert step.gradients.keys() == {*dict(net.named_parameters()), "input"}
    assert len(net.backbone_modules()) == 5


def test_torchvision_with_group_norm() -> None:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        net = tiny("torchvision/resnext50_32x4d", norm="group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert net.cls[0].weight.shape == (512, 4096, 3, 3)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("timm/resnet18", (256, 512)), ("mobilenetv3_small_050", (24, 288)), ("timm/convnext_atto", (160, 320))],
)
def test_timm(name: str, channels: tuple[int, int]) -> None:
    pytest.importorskip("timm")
    net = tiny(name)
    x, y = make_batch(batch=2, size=(65, 50), dtype=torch.float32)
    assert net.aux[0].in_channels == channels[0]
    assert net.cls[0].in_channels == channels[1] + 4 * (channels[1] // 4)
    assert net.eval()(x).shape == (2, 3, 65, 50)
    step = training_step(copy.deepcopy(net), x, y)
    assert step.gradients["input"].isfinite().all()
    assert net.backbone_modules() == [net.backbone]
    parameters = [p for module in (*net.backbone_modules(), *net.head_modules()) for p in module.parameters()]
    assert len(parameters) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"(?s)neither by torchvision nor by timm.*near: .*resnet5"),
        ("torchvision/resnet18", r"Use 'timm/resnet18', or layers=18"),
        ("torchvision/vgg16", r"'vgg16' is not one of torchvision's ResNets"),
        ("timm/vit_tiny_patch16_224", r"no feature maps at output stride 8"),
        ("keras/resnet50", r"prefix must be 'torchvision/' or 'timm/'"),
    ],
)
def test_unknown_or_unfit(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        tiny(name)
