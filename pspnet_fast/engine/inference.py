"""Labels of whole images: at once, by a sliding window, over several scales and mirrored.

The scheme is semseg's: softmax probabilities are averaged over the windows that cover a pixel, over the image and its
mirror image, and over the scales. Everything accumulates on the images' device. A sliding window moves along the rows
from the top to the bottom, and the rows that it has left are finished: only a strip of the window's height is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Amp, EvalConfig
from .errors import ConfigError

Prepare = Callable[[Tensor], Tensor]
"""Rows of the images as given -> the same rows, normalised float32 on the network's device."""

Rows = Callable[[int, int], Tensor]
"""(start, stop) -> these rows of a map, [N, C, stop - start, W]; starts never decrease from call to call."""

Run = Callable[[Tensor], Tensor]
"""Normalised images [N, 3, h, w] -> class probabilities [N, C, h, w]."""


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[object]:
    """Mixed precision on ``device``; float16 on a CPU is a :class:`ConfigError`."""
    if amp == "none":
        return nullcontext()
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("run.amp = fp16 needs a GPU; on a CPU use run.amp=bf16 or none")
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


def predict_labels(model: nn.Module, images: Tensor, options: EvalConfig) -> Tensor:
    """Class of each pixel, int64 [N, H, W], for normalised ``images`` float32 [N, 3, H, W].

    The case of one scale, no window and no mirror takes ``model.predict``, which builds no full-resolution logits.
    """
    return _joined(list(label_strips(model, images, options)), dim=1)


@torch.inference_mode()
def predict_probabilities(model: nn.Module, images: Tensor, options: EvalConfig) -> Tensor:
    """Class probabilities, float32 [N, C, H, W], averaged over scales, windows and mirroring."""
    return _joined(list(_probability_strips(model, images, options, _as_given)), dim=2)


@torch.inference_mode()
def label_strips(
    model: nn.Module, images: Tensor, options: EvalConfig, prepare: Prepare | None = None
) -> Iterator[Tensor]:
    """The labels of :func:`predict_labels`, int64 [N, rows, W], strip after strip from the top to the bottom.

    With a window (``options.crop``), memory grows with the window and the width of the images, not with their height.

    Args:
        images: [N, 3, H, W] of any type and on any device, if ``prepare`` makes them normalised float32.
    """
    prepare = prepare or _as_given
    if options.scales == (1.0,) and not options.flip and options.crop is None and options.base_size is None:
        yield model.predict(prepare(images), size=tuple(images.shape[-2:]))  # type: ignore[operator]
        return
    for probabilities in _probability_strips(model, images, options, prepare):
        yield probabilities.argmax(1)


def windows(length: int, crop: int, stride: int) -> Iterator[int]:
    """Starts of windows of ``crop`` over ``length >= crop``, ``stride`` apart; the last one ends at the border."""
    for start in range(0, max(length - crop, 0) + stride, stride):
        yield min(start, length - crop)
        if start + crop >= length:
            return


def _as_given(images: Tensor) -> Tensor:
    return images


def _joined(strips: list[Tensor], dim: int) -> Tensor:
    return strips[0] if len(strips) == 1 else torch.cat(strips, dim)


def _probability_strips(model: nn.Module, images: Tensor, options: EvalConfig, prepare: Prepare) -> Iterator[Tensor]:
    """Strips of :func:`predict_probabilities`; the scales advance together."""
    height, width = images.shape[-2:]
    base = 1.0 if options.base_size is None else options.base_size / max(height, width)
    layout = torch.channels_last if prepare(images[:, :, :1]).stride(1) == 1 else torch.contiguous_format

    def run(x: Tensor) -> Tensor:
        return _softmax(model, x.contiguous(memory_format=layout), options.flip)

    scales: list[Rows | None] = []
    for scale in options.scales:
        size = max(1, round(height * base * scale)), max(1, round(width * base * scale))
        source = _resized(lambda start, stop: prepare(images[:, :, start:stop]), (height, width), size)
        strips = _at_once(run, source, size) if options.crop is None else _sliding(run, source, size, options)
        scales.append(_resized(_Arriving(strips), size, (height, width)))

    step = height if options.crop is None else _pair(options.crop)[0]
    for start in range(0, height, step):
        stop = min(start + step, height)
        total: Tensor | None = None
        for index, rows in enumerate(scales):
            assert rows is not None
            part = rows(start, stop)
            total = part if total is None else total.add_(part)
            if stop == height:
                rows = scales[index] = None  # frees its map before the next scale makes one
        assert total is not None
        yield total.div_(len(scales))


def _at_once(run: Run, source: Rows, size: tuple[int, int]) -> Iterator[Tensor]:
    yield run(source(0, size[0]))


def _sliding(run: Run, source: Rows, size: tuple[int, int], options: EvalConfig) -> Iterator[Tensor]:
    """Mean over the windows that cover a pixel, in strips; an image below their size is padded by the mean colour."""
    assert options.crop is not None
    (height, width), (crop_h, crop_w) = size, _pair(options.crop)
    pad_h, pad_w = max(crop_h - height, 0), max(crop_w - width, 0)
    top, left = pad_h // 2, pad_w // 2
    tops = [*windows(height + pad_h, crop_h, math.ceil(crop_h * options.stride)), height + pad_h]
    lefts = list(windows(width + pad_w, crop_w, math.ceil(crop_w * options.stride)))

    # Of the windows' rows: sums of probabilities [N, C, crop_h, W], and how many windows cover a row and a column.
    total = torch.empty(0)
    cover_rows, cover_columns = torch.zeros(crop_h), torch.zeros(width + pad_w)
    for x in lefts:
        cover_columns[x : x + crop_w] += 1
    for y, following in pairwise(tops):
        rows = source(max(y - top, 0), min(y - top + crop_h, height))
        rows = F.pad(rows, (left, pad_w - left, top, pad_h - top))  # 0 is the mean once normalised
        at_once = max(1, options.batch_size // rows.shape[0])
        for first in range(0, len(lefts), at_once):
            group = lefts[first : first + at_once]
            parts = run(torch.cat([rows[..., x : x + crop_w] for x in group]))
            if total.numel() == 0:
                total = parts.new_zeros(rows.shape[0], parts.shape[1], crop_h, width + pad_w)
                cover_columns, cover_rows = cover_columns.to(parts), cover_rows.to(parts)
            for x, part in zip(group, parts.split(rows.shape[0]), strict=True):
                total[..., x : x + crop_w] += part
        cover_rows += 1

        done = following - y  # the rows above the next windows
        finished = total[:, :, :done] / (cover_rows[:done, None] * cover_columns)
        yield finished[:, :, top : top + height, left : left + width]
        for sums, dim in ((total, 2), (cover_rows, 0)):
            kept = sums.narrow(dim, done, crop_h - done).clone()
            sums.narrow(dim, 0, crop_h - done).copy_(kept)
            sums.narrow(dim, crop_h - done, done).zero_()


class _Arriving:
    """:data:`Rows` of a map that arrives in strips; keeps those from the last start on."""

    def __init__(self, strips: Iterator[Tensor]) -> None:
        self.strips = strips
        self.held: list[Tensor] = []
        self.first, self.stop = 0, 0  # the rows that are held

    def __call__(self, start: int, stop: int) -> Tensor:
        while self.stop < stop:
            self.held.append(next(self.strips))
            self.stop += self.held[-1].shape[2]
            self._drop(start)
        self._drop(start)
        return _joined(self.held, dim=2)[:, :, start - self.first : stop - self.first]

    def _drop(self, start: int) -> None:
        """Strips that end before ``start`` go."""
        while self.held and self.first + self.held[0].shape[2] <= start:
            self.first += self.held.pop(0).shape[2]


def _resized(rows: Rows, size: tuple[int, int], new_size: tuple[int, int]) -> Rows:
    """The rows of a map of ``size`` after bilinear interpolation to ``new_size``, as ``F.interpolate`` does it."""
    if size == new_size:
        return rows

    def resized(start: int, stop: int) -> Tensor:
        position = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (size[0] / new_size[0]) - 0.5
        position = position.clamp(0, size[0] - 1)
        upper = position.long()
        first, last = int(upper[0]), min(int(upper[-1]) + 1, size[0] - 1)
        source = rows(first, last + 1)
        weight = (position - upper).to(source.device, source.dtype)[:, None]
        upper = (upper - first).to(source.device)
        lower = (upper + 1).clamp(max=last - first)
        between = torch.lerp(source[:, :, upper], source[:, :, lower], weight)
        return F.interpolate(between, size=(stop - start, new_size[1]), mode="bilinear", align_corners=False)

    return resized


def _softmax(model: nn.Module, images: Tensor, flip: bool) -> Tensor:
    probabilities = _softmax_logits(model, images)
    if flip:
        probabilities = (probabilities + _softmax_logits(model, images.flip(3)).flip(3)).mul_(0.5)
    return probabilities


def _softmax_logits(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images).float()
    if logits.shape[-2:] != images.shape[-2:]:  # zoom_factor below 8
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)
    return logits.softmax(1)


def _pair(crop: int | tuple[int, int]) -> tuple[int, int]:
    return (crop, crop) if isinstance(crop, int) else crop
