"""Windows, scales and mirroring against loops over a network that sees its neighbourhood; metrics against counting."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pspnet_fast import PSPNet
from pspnet_fast.engine import ConfusionMatrix, EvalConfig, Metrics, predict_labels, predict_probabilities
from pspnet_fast.engine.inference import label_strips, windows


class Positional(nn.Module):
    """Logits that depend on the pixel, its neighbours and its place in the image, so that every window counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(tuple(x.shape))
        ramp = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape[0], 1, *x.shape[-2:])
        return 3 * self.conv(x) + ramp * torch.arange(4.0).view(1, 4, 1, 1)

    def predict(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        assert tuple(x.shape[-2:]) == size
        return torch.full((x.shape[0], *size), 7)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 21, 34, generator=torch.Generator().manual_seed(1))


def softmax(model: nn.Module, x: Tensor, flip: bool = False) -> Tensor:
    p = model(x).softmax(1)
    return (p + model(x.flip(3)).softmax(1).flip(3)) / 2 if flip else p


def sliding(model: nn.Module, x: Tensor, crop: tuple[int, int], rate: float, flip: bool = False) -> Tensor:
    """semseg's loop over the windows, one image at a time."""
    outputs = []
    for image in x:
        h, w = image.shape[-2:]
        pad_h, pad_w = max(crop[0] - h, 0), max(crop[1] - w, 0)
        padded = torch.zeros(3, h + pad_h, w + pad_w)
        padded[:, pad_h // 2 : pad_h // 2 + h, pad_w // 2 : pad_w // 2 + w] = image
        step_h, step_w = math.ceil(crop[0] * rate), math.ceil(crop[1] * rate)
        total, count = torch.zeros(4, h + pad_h, w + pad_w), torch.zeros(h + pad_h, w + pad_w)
        for i in range(math.ceil((h + pad_h - crop[0]) / step_h) + 1):
            for j in range(math.ceil((w + pad_w - crop[1]) / step_w) + 1):
                bottom, right = min(i * step_h + crop[0], h + pad_h), min(j * step_w + crop[1], w + pad_w)
                window = (..., slice(bottom - crop[0], bottom), slice(right - crop[1], right))
                total[window] += softmax(model, padded[window][None], flip)[0]
                count[window] += 1
        mean = total / count
        outputs.append(mean[:, pad_h // 2 : pad_h // 2 + h, pad_w // 2 : pad_w // 2 + w])
    return torch.stack(outputs)


def test_plain_case_takes_predict(images: Tensor) -> None:
    model = Positional()
    assert (predict_labels(model, images, EvalConfig()) == 7).all()
    assert not model.calls


def test_flip(images: Tensor) -> None:
    model = Positional()
    torch.testing.assert_close(
        predict_probabilities(model, images, EvalConfig(flip=True)), softmax(model, images, flip=True)
    )


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [9, (13, 8), (21, 34), (30, 17), 40])
def test_sliding_window(images: Tensor, crop: int | tuple[int, int], flip: bool, at_once: int) -> None:
    model = Positional()
    options = EvalConfig(crop=crop, flip=flip, batch_size=at_once)
    found = predict_probabilities(model, images, options)
    pair = (crop, crop) if isinstance(crop, int) else crop
    torch.testing.assert_close(found, sliding(model, images, pair, 2 / 3, flip))
    torch.testing.assert_close(found.sum(1), torch.ones(2, 21, 34))


def test_scales(images: Tensor) -> None:
    model = Positional()
    found = predict_probabilities(model, images, EvalConfig(scales=(0.5, 1.0, 1.75)))
    expected = torch.zeros(2, 4, 21, 34)
    for size in ((round(10.5), 17), (21, 34), (round(36.75), round(59.5))):
        part = softmax(model, F.interpolate(images, size, mode="bilinear"))
        expected += F.interpolate(part, (21, 34), mode="bilinear") / 3
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(predict_labels(model, images, EvalConfig(scales=(0.5, 1.0, 1.75))), expected.argmax(1))


def test_base_size_is_the_long_side(images: Tensor) -> None:
    model = Positional()
    found = predict_probabilities(model, images, EvalConfig(base_size=17, crop=10))
    assert found.shape == (2, 4, 21, 34)
    assert {shape[-2:] for shape in model.calls} == {(10, 10)}
    expected = sliding(model, F.interpolate(images, (round(10.5), 17), mode="bilinear"), (10, 10), 2 / 3)
    torch.testing.assert_close(found, F.interpolate(expected, (21, 34), mode="bilinear"))


STRIPS = [
    EvalConfig(crop=16),
    EvalConfig(crop=(16, 24), flip=True, batch_size=3),
    EvalConfig(crop=16, scales=(0.5, 1.0, 1.75)),
    EvalConfig(crop=(40, 9), scales=(1.3,), stride=1.0),
]


@pytest.mark.parametrize("options", STRIPS)
def test_strips_are_the_whole(images: Tensor, options: EvalConfig) -> None:
    """Strips of labels, normalised strip by strip from 8-bit rows, are the arg-max of the probabilities."""
    model, mean = Positional(), 117.0
    pixels = (images * 50 + mean).clamp(0, 255).to(torch.uint8)
    normalised = (pixels - mean) / 50
    strips = list(label_strips(model, pixels, options, lambda rows: (rows - mean) / 50))
    assert len(strips) == math.ceil(21 / (options.crop if isinstance(options.crop, int) else options.crop[0]))
    torch.testing.assert_close(torch.cat(strips, 1), predict_probabilities(model, normalised, options).argmax(1))


@pytest.mark.parametrize("options", STRIPS)
def test_memory_follows_the_window(options: EvalConfig) -> None:
    def peak(height: int) -> int:
        pixels = torch.randint(0, 256, (1, 3, height, 50), dtype=torch.uint8)
        model = Positional()
        with LiveBytes(pixels) as live:
            rows = sum(strip.shape[1] for strip in label_strips(model, pixels, options, Tensor.float))
        assert rows == height
        return live.peak

    assert peak(1200) < 1.1 * peak(300)


class LiveBytes(TorchDispatchMode):
    """Peak size of the tensors that operators have made and that are still alive; those ``given`` do not count."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.holders = {given.untyped_storage().data_ptr(): 1}  # tensors by the address of their memory
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                self.now += 0 if self.holders.get(address) else size
                self.holders[address] = self.holders.get(address, 0) + 1
                weakref.finalize(tensor, self.release, address, size)
        self.peak = max(self.peak, self.now)
        return result

    def release(self, address: int, size: int) -> None:
        self.holders[address] -= 1
        self.now -= 0 if self.holders[address] else size


@pytest.mark.parametrize("zoom_factor", [8, 2])
def test_logits_stay_of_low_resolution(zoom_factor: int) -> None:
    """PSPNet's probabilities are semseg's, and of full resolution there is the map that they are summed in."""
    torch.manual_seed(0)
    model = PSPNet(18, classes=150, zoom_factor=zoom_factor, pretrained=False).eval()
    images, options = torch.randn(1, 3, 97, 113), EvalConfig(scales=(0.5, 1.0, 1.25), flip=True)
    with LiveBytes(images) as live:
        found = predict_probabilities(model, images, options)
    assert live.peak < 2 * found.nbytes  # a third of it is the backbone's

    expected = torch.zeros_like(found)
    with torch.no_grad():
        for size in ((round(48.5), round(56.5)), (97, 113), (round(121.25), round(141.25))):
            scaled = F.interpolate(images, size, mode="bilinear")
            for mirrored in (False, True):
                logits = model(scaled.flip(3) if mirrored else scaled)
                part = F.interpolate(logits, size, mode="bilinear", align_corners=True).softmax(1)
                expected += F.interpolate(part.flip(3) if mirrored else part, (97, 113), mode="bilinear") / 6
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("length", "crop", "stride"), [(5, 5, 4), (6, 5, 4), (21, 9, 6), (100, 7, 5), (21, 9, 9)])
def test_windows_cover_everything(length: int, crop: int, stride: int) -> None:
    starts = list(windows(length, crop, stride))
    covered = {i for start in starts for i in range(start, start + crop)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert len(starts) == math.ceil((length - crop) / stride) + 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_confusion_matrix(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    matrix, expected = ConfusionMatrix(5), np.zeros((5, 5), dtype=np.int64)
    for _ in range(3):
        prediction, target = rng.integers(0, 5, (2, 7, 9)), rng.integers(0, 5, (2, 7, 9))
        target[rng.random(target.shape) < 0.2] = 255
        matrix.update(torch.from_numpy(prediction).to(dtype), torch.from_numpy(target).to(dtype))
        np.add.at(expected, (target[target != 255], prediction[target != 255]), 1)
    assert matrix.counts.dtype == torch.int64
    torch.testing.assert_close(matrix.counts, torch.from_numpy(expected), rtol=0, atol=0)


def test_counts_beyond_float32() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[1, 1] = 2**24
    matrix.update(torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    assert matrix.counts[1, 1] == 2**24 + 1


@pytest.mark.parametrize("ignore_index", [-1, -100])
def test_uint8_labels_do_not_wrap_around_to_a_negative_ignore_index(ignore_index: int) -> None:
    label = ignore_index % 256
    matrix = ConfusionMatrix(256, ignore_index=ignore_index)
    matrix.update(torch.tensor([label], dtype=torch.uint8), torch.tensor([label], dtype=torch.uint8))
    assert matrix.counts[label, label] == 1


def test_deterministic_mode_needs_no_memory_for_each_pixel_and_class() -> None:
    matrix, labels = ConfusionMatrix(150), torch.randint(0, 150, (20, 30))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.profiler.profile(profile_memory=True) as profile:
            matrix.update(labels, labels)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(event.cpu_memory_usage for event in profile.events()) < 100 * labels.nbytes
    assert matrix.counts.sum() == labels.numel()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(4,\).*\(2, 2\)"):
        ConfusionMatrix(2).update(torch.zeros(4), torch.zeros(2, 2))


def test_means() -> None:
    # Class 2 is neither labelled nor predicted and counts nowhere; class 3 is predicted only: IoU 0, no accuracy.
    counts = torch.zeros(4, 4, dtype=torch.int64)
    counts[0, 0], counts[0, 1], counts[1, 1], counts[1, 3] = 6, 2, 3, 1
    metrics = Metrics(counts, ("a", "b", "c", "d"))

    torch.testing.assert_close(metrics.iou[[0, 1, 3]], torch.tensor([6 / 8, 3 / 6, 0.0], dtype=torch.float64))
    assert math.isnan(metrics.iou[2])
    assert metrics.miou == pytest.approx((6 / 8 + 3 / 6 + 0) / 3)
    assert metrics.macc == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert metrics.accuracy == pytest.approx(9 / 12)

    record = metrics.to_dict()
    assert record["classes"]["c"] == {"iou": None, "accuracy": None}
    assert record["confusion"][0] == [6, 2, 0, 0]
    assert metrics.table().row_count == 6
