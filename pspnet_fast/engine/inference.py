"""Labels of whole images: at once, by a sliding window, over several scales and mirrored.

The scheme is semseg's: softmax probabilities are averaged over the windows that cover a pixel, over the image and its
mirror image, and over the scales. Everything accumulates on the images' device. A window stays the low-resolution
logits that the network gives until its probabilities are added (:func:`pspnet_fast.upsample_softmax_add`): of full
resolution there is one map of probabilities. A sliding window moves along the rows from the top to the bottom, and the
rows that it has left are finished: that map, too, is a strip of the window's height.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet_fast.nn import PSPNet
from pspnet_fast.ops import AxisTaps, upsample_argmax, upsample_softmax_add

from .config import Amp, EvalConfig
from .errors import ConfigError

Prepare = Callable[[Tensor], Tensor]
"""Rows of the images as given -> the same rows, normalised float32 on the network's device."""

Rows = Callable[[int, int], Tensor]
"""(start, stop) -> these rows of a map, [N, C, stop - start, W]; starts never decrease from call to call."""

Run = Callable[[Tensor], Tensor]
"""Normalised images [N, 3, h, w] -> logits [N, C, h, w], or of lower resolution."""


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[object]:
    """Mixed precision on ``device``; float16 on a CPU is a :class:`ConfigError`."""
    if amp == "none":
        return nullcontext()
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("run.amp = fp16 needs a GPU; on a CPU use run.amp=bf16 or none")
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16; other architectures than x86 count as having them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


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
        yield upsample_argmax(probabilities, probabilities.shape[2:])  # of equal size: the arg-max


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
        return _logits(model, x.contiguous(memory_format=layout))

    scales = []
    for scale in options.scales:
        size = max(1, round(height * base * scale)), max(1, round(width * base * scale))
        source = _resized(lambda start, stop: prepare(images[:, :, start:stop]), (height, width), size)
        scales.append(_Scale(run, source, size, (height, width), options))

    step = height if options.crop is None else _pair(options.crop)[0]
    weight = 1 / (len(scales) * (2 if options.flip else 1))
    for start in range(0, height, step):
        stop = min(start + step, height)
        total: Tensor | None = None
        for scale_map in scales:
            total = scale_map.add(total, start, stop, weight)
        assert total is not None
        yield total


@dataclass
class _Band:
    """The windows whose first row is ``top``: logits by the window's place in the band, and whether it is mirrored."""

    top: int
    windows: list[tuple[int, Tensor, bool]]


class _Scale:
    """The windows over the images at one scale; without ``options.crop`` one window, which is the whole.

    They are run from the top to the bottom, and kept as logits while rows of the output read them. Images below the
    windows' size are padded by the mean colour.
    """

    def __init__(
        self, run: Run, source: Rows, size: tuple[int, int], output: tuple[int, int], options: EvalConfig
    ) -> None:
        self.run, self.source, self.size, self.output, self.options = run, source, size, output, options
        self.crop = size if options.crop is None else _pair(options.crop)
        self.padded = [max(crop, n) for crop, n in zip(self.crop, size, strict=True)]
        self.before = [(padded - n) // 2 for padded, n in zip(self.padded, size, strict=True)]
        self.tops, self.lefts = (
            list(windows(n, crop, math.ceil(crop * options.stride)))
            for n, crop in zip(self.padded, self.crop, strict=True)
        )
        self.waiting, self.bands = self.tops[::-1], list[_Band]()
        columns = self._taps(1, 0, output[1])
        self.columns = [_of_window(columns, left, self.crop[1]) for left in self.lefts]

    def add(self, total: Tensor | None, start: int, stop: int, weight: float) -> Tensor:
        """Adds to ``total``, rows ``start`` to ``stop`` of the output, which is made where it is None."""
        rows = self._taps(0, start, stop)
        last = int(rows.position.max())
        end = stop >= self.output[0]
        needed = self.padded[0] if end else int(self._taps(0, stop, stop + 1).position.min())  # by the rows below
        earlier, self.bands = self.bands, []
        while earlier or (self.waiting and self.waiting[-1] <= last):
            band = earlier.pop(0) if earlier else self._run_band(self.waiting.pop())
            if total is None:
                logits = band.windows[0][1]
                shape = *logits.shape[:2], stop - start, self.output[1]
                total = logits.new_zeros(shape, dtype=torch.promote_types(logits.dtype, torch.float32))
            self._add_band(total, band, rows, weight)
            if band.top + self.crop[0] > needed:
                self.bands.append(band)
            del band  # its logits go before the next ones come
        assert total is not None
        return total

    def _add_band(self, total: Tensor, band: _Band, rows: AxisTaps, weight: float) -> None:
        vertical = _of_window(rows, band.top, self.crop[0])
        if vertical is None:
            return
        for index, logits, flip in band.windows:
            horizontal = self.columns[index]
            if horizontal is None:
                continue
            (y, own_rows), (x, columns) = (
                (first, AxisTaps(*(table.to(total.device) for table in taps))) for first, taps in (vertical, horizontal)
            )
            window = total[:, :, y : y + len(own_rows.position), x : x + len(columns.position)]
            upsample_softmax_add(window, logits, self.crop, flip=flip, weight=weight, rows=own_rows, columns=columns)

    def _taps(self, dim: int, start: int, stop: int) -> AxisTaps:
        """What rows or columns of the output read of the padded map, each weight by the number of windows there."""
        first, share = _half_pixel_taps(start, stop, self.size[dim], self.output[dim])
        index = torch.stack([first, (first + 1).clamp(max=self.size[dim] - 1)], 1) + self.before[dim]
        starts = torch.tensor((self.tops, self.lefts)[dim])
        begun, ended = (torch.searchsorted(starts, at, right=True) for at in (index, index - self.crop[dim]))
        return AxisTaps(index, torch.stack([1 - share, share], 1) / (begun - ended))

    def _run_band(self, top: int) -> _Band:
        (crop_h, crop_w), (height, width), (above, left) = self.crop, self.size, self.before
        first = top - above
        rows = self.source(max(first, 0), min(first + crop_h, height))
        pad = left, self.padded[1] - width - left, max(-first, 0), max(first + crop_h - height, 0)
        rows = F.pad(rows, pad) if any(pad) else rows  # 0 is the mean once normalised
        at_once = max(1, self.options.batch_size // rows.shape[0])
        band = _Band(top, [])
        for start in range(0, len(self.lefts), at_once):
            group = range(start, min(start + at_once, len(self.lefts)))
            images = _joined([rows[..., self.lefts[i] : self.lefts[i] + crop_w] for i in group], 0)
            for flip in (False, True) if self.options.flip else (False,):
                logits = self.run(images.flip(3) if flip else images)
                parts = logits.split(rows.shape[0])
                band.windows += [(i, part, flip) for i, part in zip(group, parts, strict=True)]
        return band


def _half_pixel_taps(start: int, stop: int, n: int, output: int) -> tuple[Tensor, Tensor]:
    """Of positions ``start`` to ``stop`` of an axis of ``n`` resized to ``output``, as ``F.interpolate`` does it.

    The first of two positions that are read, int64, and the share of the other (the next one), float64.
    """
    position = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (n / output) - 0.5
    position = position.clamp(0, n - 1)
    first = position.long()
    return first, position - first


def _of_window(taps: AxisTaps, start: int, crop: int) -> tuple[int, AxisTaps] | None:
    """The first position that reads the window at ``start``, and the taps from there on; None where nothing does."""
    index = taps.position - start
    weight = taps.weight * ((index >= 0) & (index < crop))
    read = weight.any(1).nonzero().flatten()
    if not len(read):
        return None
    first, last = int(read[0]), int(read[-1]) + 1
    return first, AxisTaps(index[first:last].clamp(0, crop - 1).int(), weight[first:last].float())


def _resized(rows: Rows, size: tuple[int, int], new_size: tuple[int, int]) -> Rows:
    """The rows of a map of ``size`` after bilinear interpolation to ``new_size``, as ``F.interpolate`` does it."""
    if size == new_size:
        return rows

    def resized(start: int, stop: int) -> Tensor:
        top, share = _half_pixel_taps(start, stop, size[0], new_size[0])
        first, last = int(top[0]), min(int(top[-1]) + 1, size[0] - 1)
        source = rows(first, last + 1)
        weight = share.to(source.device, source.dtype)[:, None]
        top = (top - first).to(source.device)
        bottom = (top + 1).clamp(max=last - first)
        between = torch.lerp(source[:, :, top], source[:, :, bottom], weight)
        return F.interpolate(between, size=(stop - start, new_size[1]), mode="bilinear", align_corners=False)

    return resized


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """What the logits of ``images`` are upsampled from, in one step, with aligned corners."""
    if isinstance(model, PSPNet) and model.zoom_factor == 8:
        return model.low_resolution_logits(images)
    logits: Tensor = model(images)  # below 8 semseg upsamples twice
    return logits


def _pair(crop: int | tuple[int, int]) -> tuple[int, int]:
    return (crop, crop) if isinstance(crop, int) else crop
