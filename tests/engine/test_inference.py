"""Windows, scales and mirroring against loops over a network that sees single pixels, and one that does not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet_fast.engine import ConfigError, EvalConfig, predict_labels, predict_probabilities
from pspnet_fast.engine.inference import autocast, windows


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


@pytest.mark.parametrize(("length", "crop", "stride"), [(5, 5, 4), (6, 5, 4), (21, 9, 6), (100, 7, 5), (21, 9, 9)])
def test_windows_cover_everything(length: int, crop: int, stride: int) -> None:
    starts = list(windows(length, crop, stride))
    covered = {i for start in starts for i in range(start, start + crop)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert len(starts) == math.ceil((length - crop) / stride) + 1


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        autocast(torch.device("cpu"), "fp16")
