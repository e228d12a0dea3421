"""Backbones of torchvision and timm by name; loading of checkpoints and of ImageNet weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from network_pairs import assert_near, make_batch, make_pair, training_step
from torch import Tensor, nn

from pspnet_fast.nn import PSPNet, load_checkpoint_weights, load_imagenet_resnet


def fresh(**arguments: object) -> PSPNet:
    return PSPNet(**{"layers": 18, "classes": 3, "pretrained": False, **arguments})


def assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[key], rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("envelope", ["state_dict", "model", None])
def test_checkpoints(prefix: str, envelope: str | None, tmp_path: Path) -> None:
    trained, _ = make_pair(torch.float32)
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1).state_dict()
    torch.save({"epoch": 3, envelope: state, "optimizer": optimizer} if envelope else state, tmp_path / "a.pth")
    net = fresh()
    report = load_checkpoint_weights(net, tmp_path / "a.pth")
    assert report.complete
    assert len(report.loaded) == len(state)
    assert_equal_states(trained, net)


def test_wrapped_model_and_state_dict_as_source() -> None:
    trained, _ = make_pair(torch.float32)
    net = fresh()
    load_checkpoint_weights(nn.DataParallel(torch.compile(net)), trained.state_dict())
    assert_equal_states(trained, net)


def test_criterion_weights_do_not_hinder() -> None:
    weighted = fresh(criterion=nn.CrossEntropyLoss(weight=torch.ones(3)))
    net = fresh()
    assert load_checkpoint_weights(net, weighted.state_dict()).complete
    assert load_checkpoint_weights(weighted, net.state_dict()).complete


def test_other_classes() -> None:
    net = fresh()
    before = net.cls[4].weight.clone()
    source = fresh(classes=150).state_dict()
    with pytest.raises(ValueError, match=r"150 classes, the model 3.*PSPNet\(classes=150\)"):
        load_checkpoint_weights(net, source)
    report = load_checkpoint_weights(net, source, skip=("cls.4.", "aux.4."))
    assert report.complete
    torch.testing.assert_close(net.cls[4].weight, before, rtol=0, atol=0)
    torch.testing.assert_close(net.cls[0].weight, source["cls.0.weight"], rtol=0, atol=0)


def test_other_depth_and_missing_entries() -> None:
    net = fresh()
    with pytest.raises(ValueError, match="layer3 has 6 blocks and the model's 2"):
        load_checkpoint_weights(net, fresh(layers=34).state_dict())
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("aux.")}
    with pytest.raises(ValueError, match=r"missing: aux\.0\.weight"):
        load_checkpoint_weights(net, state)
    report = load_checkpoint_weights(net, state, strict=False)
    assert all(key.startswith("aux.") for key in report.missing)
    with pytest.raises(ValueError, match="0 entries loaded"):
        load_checkpoint_weights(net, {"foo": torch.ones(1)}, strict=False)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError):
        load_checkpoint_weights(fresh(), file)
    for content, message in (
        ({"state_dict": nn.ReLU()}, r"a\.pth: holds torch.nn.modules.activation.ReLU besides tensors"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "its keys are: epoch"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message):
            load_checkpoint_weights(fresh(), file)


def classifier_state(net: PSPNet) -> dict[str, Tensor]:
    """The backbone under the names of a classifier with a deep stem, as in semseg's resnet*_v2.pth."""
    names = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
    state = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    for key, value in net.state_dict().items():
        stage, index, *rest = key.split(".")
        if stage == "layer0":
            state[".".join([names[index], *rest])] = value
        elif stage.startswith("layer"):
            state[key] = value
    return state


def test_pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    source, _ = make_pair(torch.float32)
    (tmp_path / "initmodel").mkdir()
    torch.save(classifier_state(source), tmp_path / "initmodel" / "resnet18_v2.pth")
    monkeypatch.chdir(tmp_path)
    x = make_batch(dtype=torch.float32)[0]
    for pretrained in (True, tmp_path / "initmodel" / "resnet18_v2.pth", "initmodel/resnet18_v2.pth"):
        net = PSPNet(layers=18, classes=5, pretrained=pretrained)
        assert_near(net.eval()._features(x)[1], source.eval()._features(x)[1], 1e-6)
    assert [str(w.message) for w in recwarn if "backbone" in str(w.message)] == []


def test_torchvision_weights_into_the_deep_stem() -> None:
    models = pytest.importorskip("torchvision.models")
    original = models.resnet50(weights=None).state_dict()
    net = fresh(layers=50)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = load_imagenet_resnet(net, original)

    left = {key for key in before if key.startswith("layer") and key not in report.loaded}
    front = ("layer0.", "layer1.0.conv1.", "layer1.0.bn1.", "layer1.0.downsample.")
    assert left == {key for key in before if key.startswith(front)}
    assert "layer1.0.conv1.weight" in report.mismatched
    assert "layer1.0.bn1.running_mean" in report.mismatched
    assert "layer0.0.weight" in report.missing
    assert not report.complete
    assert "layer1.0.conv1.weight" in str(report)
    after = net.state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], original[key] if key in report.loaded else value, rtol=0, atol=0)


def test_partial_fit_is_said_at_construction(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "tv.pth")
    with pytest.warns(UserWarning, match=r"fits the backbone in part only.*layer0.0.weight"):
        fresh(pretrained=tmp_path / "tv.pth")


def test_torchvision_resnet(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    original = models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    torch.save(original.state_dict(), tmp_path / "resnet50.pth")
    net = fresh(backbone="resnet50", layers=50, pretrained=tmp_path / "resnet50.pth")
    assert load_imagenet_resnet(net, original.state_dict()).complete
    x, y = make_batch(batch=2, size=(41, 33), dtype=torch.float32)
    assert net.eval()(x).shape == (2, 3, 41, 33)
    assert net.low_resolution_logits(x).shape == (2, 3, 6, 5)
    original.eval().avgpool = original.fc = nn.Identity()
    torch.testing.assert_close(net._features(x)[1].flatten(1), original(x))

    step = training_step(net, x, y)
    assert step.gradients.keys() == {*dict(net.named_parameters()), "input"}
    assert len(net.backbone_modules()) == 5


def test_torchvision_with_group_norm() -> None:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        net = fresh(backbone="torchvision/resnext50_32x4d", norm="group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert net.cls[0].weight.shape == (512, 4096, 3, 3)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("timm/resnet18", (256, 512)), ("mobilenetv3_small_050", (24, 288)), ("timm/convnext_atto", (160, 320))],
)
def test_timm(name: str, channels: tuple[int, int]) -> None:
    pytest.importorskip("timm")
    net = fresh(backbone=name)
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
        fresh(backbone=name)


def test_timm_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    original = timm.create_model("resnet18", pretrained=False)
    net = fresh(backbone="timm/resnet18")
    assert load_imagenet_resnet(net, original.state_dict()).complete
    torch.testing.assert_close(net.backbone.conv1.weight, original.conv1.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="no entry of these weights fits"):
        load_imagenet_resnet(net, {"stem.weight": torch.ones(1)})
