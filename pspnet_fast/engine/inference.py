"""Labels of whole images: at once, by a sliding window, over several scales and mirrored.

The scheme is semseg's: softmax probabilities are averaged over the windows that cover a pixel, over the image and its
mirror image, and over the scales. Everything accumulates on the images' device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Amp, EvalConfig
from .errors import ConfigError


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[object]:
    """Mixed precision on ``device``; float16 on a CPU is a :class:`ConfigError`."""
    if amp == "none":
        return nullcontext()
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("run.amp = fp16 needs a GPU; on a CPU use run.amp=bf16 or none")
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


@torch.inference_mode()
def predict_labels(model: nn.Module, images: Tensor, options: EvalConfig) -> Tensor:
    """Class of each pixel, int64 [N, H, W], for normalised ``images`` float32 [N, 3, H, W].

    The plain case (one scale, no window, no mirror) takes ``model.predict``, which builds no full-resolution logits.
    """
    size = images.shape[-2:]
    if options.scales == (1.0,) and not options.flip and options.crop is None and options.base_size is None:
        labels: Tensor = model.predict(images, size=tuple(size))  # type: ignore[operator]
        return labels
    return predict_probabilities(model, images, options).argmax(1)


@torch.inference_mode()
def predict_probabilities(model: nn.Module, images: Tensor, options: EvalConfig) -> Tensor:
    """Class probabilities, float32 [N, C, H, W], averaged over scales, windows and mirroring."""
    height, width = images.shape[-2:]
    base = 1.0 if options.base_size is None else options.base_size / max(height, width)
    total: Tensor | None = None
    for scale in options.scales:
        scaled = _resize(images, (max(1, round(height * base * scale)), max(1, round(width * base * scale))))
        part = _whole(model, scaled, options.flip) if options.crop is None else _sliding(model, scaled, options)
        part = _resize(part, (height, width))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.div_(len(options.scales))


def windows(length: int, crop: int, stride: int) -> Iterator[int]:
    """Starts of windows of ``crop`` over ``length >= crop``, ``stride`` apart; the last one ends at the border."""
    for start in range(0, max(length - crop, 0) + stride, stride):
        yield min(start, length - crop)
        if start + crop >= length:
            return


def _sliding(model: nn.Module, images: Tensor, options: EvalConfig) -> Tensor:
    """Mean over the windows that cover a pixel; an image below their size is padded on all sides by the mean colour."""
    assert options.crop is not None
    crop_h, crop_w = (options.crop, options.crop) if isinstance(options.crop, int) else options.crop
    height, width = images.shape[-2:]
    pad_h, pad_w = max(crop_h - height, 0), max(crop_w - width, 0)
    padded = F.pad(
        images, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
    )  # 0 is the mean once normalised
    rows = windows(height + pad_h, crop_h, math.ceil(crop_h * options.stride))
    columns = windows(width + pad_w, crop_w, math.ceil(crop_w * options.stride))
    corners = list(product(rows, columns))

    n = images.shape[0]
    at_once = max(1, options.batch_size // n)
    total: Tensor | None = None
    cover = padded.new_zeros(1, 1, *padded.shape[-2:], dtype=torch.float32)
    for first in range(0, len(corners), at_once):
        group = corners[first : first + at_once]
        crops = torch.cat([padded[:, :, y : y + crop_h, x : x + crop_w] for y, x in group])
        parts = _whole(model, crops, options.flip)
        if total is None:
            total = parts.new_zeros(n, parts.shape[1], *padded.shape[-2:])
        for (y, x), part in zip(group, parts.split(n), strict=True):
            total[:, :, y : y + crop_h, x : x + crop_w] += part
            cover[:, :, y : y + crop_h, x : x + crop_w] += 1
    assert total is not None
    total /= cover
    return total[:, :, pad_h // 2 : pad_h // 2 + height, pad_w // 2 : pad_w // 2 + width]


def _whole(model: nn.Module, images: Tensor, flip: bool) -> Tensor:
    probabilities = _softmax_logits(model, images)
    if flip:
        probabilities = (probabilities + _softmax_logits(model, images.flip(3)).flip(3)).mul_(0.5)
    return probabilities


def _softmax_logits(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images).float()
    if logits.shape[-2:] != images.shape[-2:]:  # zoom_factor below 8
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)
    return logits.softmax(1)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
