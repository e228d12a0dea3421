"""How a convolution over segments is computed without the full-resolution map.

Upsampling and convolution are linear. A 1x1 convolution commutes with the upsampling, bias included, because the
weights of an interpolation sum to one; so it runs at low resolution, and its result is upsampled and added: all levels
in one call of ``upsample_add`` where that has a kernel. Of a map that a linear layer gave, it takes what the layer was
given (projection.py). A 3x3 convolution over a map and levels is one call of ``pyramid_conv``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import ops
from pspnet_fast.fusion.cost import conv_flop, pointwise_pays, projection_pays, pyramid_pays
from pspnet_fast.fusion.pointwise import pointwise
from pspnet_fast.fusion.segments import Geometry, Segment

# Levels up to this side are multiplied as pyramid_conv does it, in 1x1 convolutions too.
_SMALL = 8


@dataclass(frozen=True)
class ConvPlan:
    """A form of one convolution.

    Attributes:
        name: for the report.
        fused: ``(tensors of the segments, [weight, bias]) -> result``.
        geometry: where given, the result is at low resolution, and this upsampling of it is meant.
        used: the geometries of the segments that stay at low resolution.
        projects: whether maps that a linear layer gave are computed from what it was given.
    """

    name: str
    fused: Callable[[list[Tensor], list[Any]], Tensor]
    geometry: Geometry | None
    used: Sequence[Geometry]
    projects: bool = False

    def flop_saved(self, segments: Sequence[Segment], weight: Tensor, batch: int) -> int:
        out_channels, kernel = weight.shape[0], weight.shape[2]
        saved = 0
        for s in segments:
            low, channels = s.tensor.shape[2:], s.channels
            full = low if s.geometry is None or s.geometry not in self.used else s.geometry.full
            if self.projects and s.projection is not None and projection_pays(s, out_channels):
                channels = s.projection.weight.shape[1]
            saved += conv_flop(batch, out_channels, s.channels, kernel, full)
            saved -= conv_flop(batch, out_channels, channels, kernel, low)
        return saved


def refusal(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> str | None:
    """Why a convolution of these options is not fused, or None."""
    kernel = tuple(weight.shape[2:])
    if kernel not in ((1, 1), (3, 3)) or groups != 1 or _pair(stride) != (1, 1) or _pair(dilation) != (1, 1):
        options = f"kernel {kernel}, stride {stride}, dilation {dilation}, groups {groups}"
        return f"{options}: only dense 1x1 and 3x3 are fused"
    if padding != "same" and (isinstance(padding, str) or _pair(padding) != (kernel[0] // 2, kernel[1] // 2)):
        return f"padding {padding} changes the size"
    return None


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)


def conv_plan(segments: Sequence[Segment], weight: Tensor, lazy: bool = True) -> ConvPlan | None:
    """The fused form for options that :func:`refusal` accepts, or None if the stock form is as good.

    Without ``lazy`` the result is never left at low resolution.
    """
    out_channels, kernel = weight.shape[0], weight.shape[2]
    pyramid = _as_pyramid(segments, weight)
    geometries = [s.geometry for s in segments if s.geometry is not None]
    if pyramid is not None and (kernel == 3 or max(map(max, pyramid[0])) <= _SMALL):
        bins, x_first = pyramid
        return ConvPlan("pyramid_conv", _pyramid(segments, bins, x_first), None, geometries)
    used = [s.geometry for s in segments if s.geometry is not None and pointwise_pays(s, out_channels)]
    if kernel != 1 or not (used or any(projection_pays(s, out_channels) for s in segments)):
        return None
    single = lazy and bool(used) and len(used) == len(segments) and all(g == used[0] for g in used)
    fused = pointwise(segments, out_channels, not single)
    return ConvPlan("1x1 at low resolution", fused, used[0] if single else None, used, True)


def _as_pyramid(segments: Sequence[Segment], weight: Tensor) -> tuple[list[tuple[int, int]], bool] | None:
    """``(bins, x_first)`` if ``pyramid_conv`` takes the segments: levels of as many channels, and x first or last."""
    is_level = [s.geometry is not None for s in segments]
    levels = [s for s in segments if s.geometry is not None]
    count = len(levels)
    if not levels or count == len(segments):
        return None
    x_first = is_level == [False] * (len(segments) - count) + [True] * count
    if not x_first and is_level != [True] * count + [False] * (len(segments) - count):
        return None
    geometries = [s.geometry for s in levels if s.geometry is not None]
    if any(s.channels != levels[0].channels for s in levels):
        return None
    if any(g.align_corners != geometries[0].align_corners for g in geometries):
        return None
    pays = pyramid_pays(levels, weight.shape[0], weight.shape[2])
    return ([g.low for g in geometries], x_first) if pays else None


def _pyramid(segments: Sequence[Segment], bins: list[tuple[int, int]], x_first: bool) -> Any:
    align_corners = next(s.geometry.align_corners for s in segments if s.geometry is not None)

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        dense = [t for t, s in zip(leaves, segments, strict=True) if s.geometry is None]
        lows = [t.flatten(2) for t, s in zip(leaves, segments, strict=True) if s.geometry is not None]
        x = dense[0] if len(dense) == 1 else torch.cat(dense, dim=1)
        options: dict[str, Any] = {"bins": bins, "align_corners": align_corners, "x_first": x_first}
        return ops.pyramid_conv(x, torch.cat(lows, dim=2), others[0], others[1], **options)

    return fused
