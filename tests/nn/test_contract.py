"""What hszhao/semseg's training script and checkpoints rely on."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from network_pairs import assert_near, assert_same_step, assert_trains_alike, make_batch, make_pair, training_step
from plain_pspnet import PlainPSPNet
from torch import nn

from pspnet_fast.nn import PSPNet

SHAPES_R50 = {
    "layer0.0.weight": (64, 3, 3, 3),
    "layer0.1.running_var": (64,),
    "layer0.3.weight": (64, 64, 3, 3),
    "layer0.4.weight": (64,),
    "layer0.6.weight": (128, 64, 3, 3),
    "layer0.7.bias": (128,),
    "layer1.0.conv1.weight": (64, 128, 1, 1),
    "layer1.0.downsample.0.weight": (256, 128, 1, 1),
    "layer4.2.bn3.weight": (2048,),
    "ppm.features.0.1.weight": (512, 2048, 1, 1),
    "ppm.features.3.2.running_mean": (512,),
    "cls.0.weight": (512, 4096, 3, 3),
    "cls.1.num_batches_tracked": (),
    "cls.4.weight": (19, 512, 1, 1),
    "cls.4.bias": (19,),
    "aux.0.weight": (256, 1024, 3, 3),
    "aux.4.weight": (19, 256, 1, 1),
}


@pytest.mark.parametrize(("layers", "entries"), [(50, 370), (101, 676), (152, 982)])
def test_state_dict_keys_and_shapes(layers: int, entries: int) -> None:
    with torch.device("meta"):
        fast = PSPNet(layers=layers, classes=19, pretrained=False)
        plain = PlainPSPNet(layers=layers, classes=19)
    shapes = {key: tuple(value.shape) for key, value in fast.state_dict().items()}
    assert len(shapes) == entries
    assert shapes == {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    if layers == 50:
        assert {key: shapes[key] for key in SHAPES_R50} == SHAPES_R50


def test_dilation_and_stride() -> None:
    with torch.device("meta"):
        net = PSPNet(layers=50, pretrained=False)
    for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for name, module in stage.named_modules():
            if isinstance(module, nn.Conv2d):
                expected = dilation if name.endswith("conv2") else 1
                assert (module.dilation, module.stride) == ((expected, expected), (1, 1)), name


def test_load_state_dict_both_ways() -> None:
    fast, _ = make_pair(torch.float32)
    plain = PlainPSPNet(layers=18, classes=3)
    plain.load_state_dict(fast.state_dict())
    x = make_batch(dtype=torch.float32)[0]
    assert_near(fast.eval()(x), plain.eval()(x), 1e-4)


def test_outputs_are_the_callers_own() -> None:
    fast, _ = make_pair()
    x, y = make_batch()
    labels, main, aux = fast.train()(x, y)
    assert labels.dtype == torch.int64
    assert labels.is_contiguous()
    assert labels.shape == y.shape
    assert main.shape == aux.shape == ()

    (main + 0.4 * aux).backward()
    labels[y == 255] = 255  # as intersectionAndUnionGPU does
    assert (labels[y == 255] == 255).all()
    with torch.no_grad():  # as an all-reduce does
        before = main.clone()
        aux.mul_(2)
        torch.testing.assert_close(main, before, rtol=0, atol=0)
        main.add_(1)
        torch.testing.assert_close(main, before + 1)


def test_losses_may_change_in_place_before_backward() -> None:
    fast, _ = make_pair()
    x, y = make_batch()
    expected = training_step(fast, x, y)
    torch.manual_seed(7)
    fast.zero_grad()
    _, main, aux = fast(x, y)
    main += 0.4 * aux
    main.backward()
    assert_near(fast.cls[0].weight.grad, expected.gradients["cls.0.weight"], 1e-10)


def test_optimizer_groups_and_sync_batchnorm_converted_later() -> None:
    fast, plain = make_pair()
    modules = [*fast.backbone_modules(), *fast.head_modules()]
    named = [fast.layer0, fast.layer1, fast.layer2, fast.layer3, fast.layer4, fast.ppm, fast.cls, fast.aux]
    assert all(a is b for a, b in zip(modules, named, strict=True))
    optimizer = torch.optim.SGD([{"params": module.parameters()} for module in modules], lr=0.01)
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in fast.parameters()}

    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fast)
    assert converted is fast
    assert isinstance(fast.ppm.features[0][2], nn.SyncBatchNorm)
    assert {id(p) for p in fast.parameters()} == grouped
    x, y = make_batch()
    assert_near(fast.eval()(x), plain.eval()(x), 1e-10)
    assert_trains_alike(fast, plain, x, y)  # in one process the converted layers fall back to batch norm


def test_deepcopy_and_pickle() -> None:
    fast, _ = make_pair()
    x, y = make_batch()
    expected = training_step(copy.deepcopy(fast), x, y)
    assert_same_step(training_step(pickle.loads(pickle.dumps(fast)), x, y), expected, tolerance=0)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    restored = torch.load(buffer, weights_only=False)
    assert_same_step(training_step(restored, x, y), expected, tolerance=0)
    # The copy trained; the original kept its own weights and statistics.
    assert fast.cls[0].weight.grad is None


def test_argmax_is_that_of_the_logits() -> None:
    fast, plain = make_pair()
    x = make_batch()[0]
    logits = plain.eval()(x)
    torch.testing.assert_close(fast.eval().predict(x), logits.argmax(1), rtol=0, atol=0)
    low = fast.low_resolution_logits(x)
    assert low.shape == (3, 3, 8, 7)
    up = nn.functional.interpolate(low, (20, 31), mode="bilinear", align_corners=True)
    labels = fast.predict(x, size=(20, 31))
    torch.testing.assert_close(labels, up.argmax(1), rtol=0, atol=0)
    assert not labels.is_inference()
    with pytest.raises(RuntimeError, match="eval"):
        fast.train().predict(x)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_label_dtypes(dtype: torch.dtype) -> None:
    fast, _ = make_pair()
    x, y = make_batch()
    assert_same_step(training_step(fast, x, y.to(dtype)), training_step(fast, x, y), tolerance=0)


def test_bad_labels_and_images() -> None:
    fast, _ = make_pair(torch.float32)
    x, y = make_batch(dtype=torch.float32)
    statistics = fast.layer0[1].running_mean.clone()
    with pytest.raises(ValueError, match=r"labels must be \[N, h, w\] = \[3, 57, 49\].*squeeze"):
        fast(x, y[:, None])
    with pytest.raises(ValueError, match=r"not \[3, 56, 49\]"):
        fast(x, y[:, 1:])
    with pytest.raises(ValueError, match=r"int64, int32 or uint8, not torch.float32"):
        fast(x, y.float())
    with pytest.raises(ValueError, match="needs labels"):
        fast(x)
    with pytest.raises(ValueError, match="unsqueeze"):
        fast(x[0], y)
    torch.testing.assert_close(fast.layer0[1].running_mean, statistics, rtol=0, atol=0)  # refused before any work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 42}, "18, 34, 50, 101, 152"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"zoom_factor": 3}, "1, 2, 4 or 8"),
        ({"bins": ()}, "use_ppm=False"),
        ({"bins": (0, 2)}, "positive"),
        ({"norm": "instance"}, "'batch' or 'group'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        PSPNet(**{"layers": 18, "pretrained": False, **arguments})


def test_missing_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"initmodel/resnet50_v2.pth.*pretrained=False"):
        PSPNet()


def test_batch_of_one() -> None:
    fast, plain = make_pair()
    x, y = make_batch(batch=1)
    statistics = fast.layer0[1].running_mean.clone()
    with pytest.raises(ValueError, match=r"batch of at least 2.*norm='group'"):
        fast.train()(x, y)
    torch.testing.assert_close(fast.layer0[1].running_mean, statistics, rtol=0, atol=0)

    fast.ppm.eval(), plain.train().ppm.eval()
    torch.manual_seed(7)
    labels, main, _ = fast(x, y)
    torch.manual_seed(7)
    plain_labels, plain_main, _ = plain(x, y)
    torch.testing.assert_close(labels, plain_labels, rtol=0, atol=0)
    assert_near(main, plain_main, 1e-10)


def test_batch_of_one_elsewhere() -> None:
    x, y = make_batch(batch=1, dtype=torch.float32)
    for arguments in ({"norm": "group"}, {"bins": (2, 4)}, {"use_ppm": False}):
        net = PSPNet(layers=18, classes=3, pretrained=False, **arguments).train()
        step = training_step(net, x, y)
        assert step.main.isfinite()
        assert all(gradient.isfinite().all() for gradient in step.gradients.values())
    group = PSPNet(layers=18, classes=3, pretrained=False, norm="group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())


def test_slices_of_a_head_are_sequential() -> None:
    fast, _ = make_pair(torch.float32)
    front = fast.cls[:4]
    assert type(front) is nn.Sequential
    assert front[0] is fast.cls[0]
