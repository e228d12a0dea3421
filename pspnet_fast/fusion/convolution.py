"""``conv2d`` of an upsampled map, or of a concatenation of such maps, without the full-resolution map.

Upsampling and convolution are linear. A 1x1 convolution commutes with the upsampling, bias included, because the
weights of an interpolation sum to one; so it runs at low resolution, and its result is upsampled and added: all levels
in one call of ``upsample_add`` where that has a kernel. Of a map that a linear layer gave, it takes what the layer was
given (projection.py). A 3x3 convolution over a map and levels is one call of ``pyramid_conv``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import backend, ops
from pspnet_fast.fusion.cost import conv_flop, pixels, pointwise_pays, projection_pays, pyramid_pays
from pspnet_fast.fusion.deferred import RULES, Deferred
from pspnet_fast.fusion.fused import run, supported
from pspnet_fast.fusion.projection import Projection, projected_conv2d
from pspnet_fast.fusion.segments import Geometry, Segment, assemble, enlarge, pair
from pspnet_fast.layout import format_of, is_channels_last, suggests_channels_last

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


def refusal(weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> str | None:
    """Why a convolution of these options is not fused, or None."""
    kernel = tuple(weight.shape[2:])
    if kernel not in ((1, 1), (3, 3)) or groups != 1 or pair(stride) != (1, 1) or pair(dilation) != (1, 1):
        options = f"kernel {kernel}, stride {stride}, dilation {dilation}, groups {groups}"
        return f"{options}: only dense 1x1 and 3x3 are fused"
    if padding != "same" and (isinstance(padding, str) or pair(padding) != (kernel[0] // 2, kernel[1] // 2)):
        return f"padding {padding} changes the size"
    return None


def conv_plan(segments: Sequence[Segment], weight: Tensor, lazy: bool = True) -> ConvPlan | None:
    """The fused form for options that :func:`refusal` accepts, or None if the stock form is as good.

    Without ``lazy`` the result is never left at low resolution.
    """
    out_channels = weight.shape[0]
    pyramid = _pyramid(segments, weight)
    if pyramid is not None:
        return pyramid
    used = [s.geometry for s in segments if s.geometry is not None and pointwise_pays(s, out_channels)]
    if weight.shape[2] != 1 or not (used or any(projection_pays(s, out_channels) for s in segments)):
        return None
    single = lazy and bool(used) and len(used) == len(segments) and all(g == used[0] for g in used)
    fused = _pointwise(segments, out_channels, not single)
    return ConvPlan("1x1 at low resolution", fused, used[0] if single else None, used, True)


def _pyramid(segments: Sequence[Segment], weight: Tensor) -> ConvPlan | None:
    """The form by ``pyramid_conv``, which takes levels of as many channels, and x first or last."""
    is_level = [s.geometry is not None for s in segments]
    levels = [s for s in segments if s.geometry is not None]
    geometries = [s.geometry for s in segments if s.geometry is not None]
    if not levels or len(levels) == len(segments) or any(s.channels != levels[0].channels for s in levels):
        return None
    x_first, align_corners = is_level == sorted(is_level), geometries[0].align_corners
    if not x_first and is_level != sorted(is_level, reverse=True):
        return None
    if any(g.align_corners != align_corners for g in geometries):
        return None
    bins, kernel = [g.low for g in geometries], weight.shape[2]
    if not pyramid_pays(levels, weight.shape[0], kernel) or (kernel == 1 and max(map(max, bins)) > _SMALL):
        return None

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        dense = [t for t, s in zip(leaves, segments, strict=True) if s.geometry is None]
        lows = [t.flatten(2) for t, s in zip(leaves, segments, strict=True) if s.geometry is not None]
        x = dense[0] if len(dense) == 1 else torch.cat(dense, dim=1)
        options: dict[str, Any] = {"bins": bins, "align_corners": align_corners, "x_first": x_first}
        return ops.pyramid_conv(x, torch.cat(lows, dim=2), others[0], others[1], **options)

    return ConvPlan("pyramid_conv", fused, None, geometries)


def _pointwise(
    segments: Sequence[Segment], out_channels: int, upsample: bool
) -> Callable[[list[Tensor], list[Any]], Tensor]:
    """``fused`` of a ConvPlan over ``segments``; its result is at full resolution if ``upsample``, else at the one low
    resolution that all segments have.
    """

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        weight, bias = others
        autocast = torch.is_autocast_enabled(weight.device.type)
        groups: dict[Geometry | None, list[tuple[Tensor, Tensor, Projection | None]]] = {}
        for leaf, s, part in zip(leaves, segments, weight.split([s.channels for s in segments], dim=1), strict=True):
            geometry = s.geometry if pointwise_pays(s, out_channels) else None
            if geometry != s.geometry:
                leaf = assemble([Segment(leaf, s.geometry, False)], "map")
            projected = geometry == s.geometry and projection_pays(s, out_channels) and not autocast
            groups.setdefault(geometry, []).append((leaf, part, s.projection if projected else None))

        terms: list[tuple[Tensor, Geometry | None]] = []
        for geometry in sorted(groups, key=lambda g: g is not None):  # the dense part first
            terms.append((_products(groups[geometry], None if terms else bias), geometry))
        return _sum(terms) if upsample else terms[0][0]

    return fused


def _products(maps: Sequence[tuple[Tensor, Tensor, Projection | None]], bias: Tensor | None) -> Tensor:
    """The sum of the convolutions of maps of one size by their weights; one of all that are not projected."""
    results = []
    plain = [(x, weight) for x, weight, projection in maps if projection is None]
    if plain:
        x, weight = (t[0] if len(plain) == 1 else torch.cat(t, dim=1) for t in zip(*plain, strict=True))
        results.append(F.conv2d(x, weight, bias))
    for x, weight, projection in maps:
        if projection is not None:
            results.append(projected_conv2d(x, weight, None if results else bias, projection))
    return functools.reduce(Tensor.add_, results)


def _sum(terms: Sequence[tuple[Tensor, Geometry | None]]) -> Tensor:
    """The sum of terms, of which only the first may have full resolution; the others are upsampled."""
    base = terms[0][0] if terms[0][1] is None else None
    lows = [(term, geometry) for term, geometry in terms if geometry is not None]
    corners = {geometry.align_corners for _, geometry in lows}
    if len(terms) > 1 and len(corners) == 1 and backend.select("upsample_add", lows[0][0].device.type) != "reference":
        options: dict[str, Any] = {"align_corners": corners.pop(), "channels_last": is_channels_last(lows[0][0])}
        bins = [geometry.low for _, geometry in lows]
        if options["channels_last"]:  # packed as these lie in memory, and as the kernel reads them
            packed = torch.cat([term.flatten(2).transpose(1, 2) for term, _ in lows], dim=1).transpose(1, 2)
        else:
            packed = torch.cat([term.flatten(2) for term, _ in lows], dim=2)
        return ops.upsample_add(packed, base, size=lows[0][1].full, bins=bins, **options)

    result = base
    for term, geometry in lows:
        term = enlarge(term, geometry)
        result = term if result is None else result.add_(term)
    assert result is not None
    return result


def _conv2d(func: Any, input: Any, weight: Any, bias: Any = None, *options: Any, **keywords: Any) -> Any:
    if not isinstance(input, Deferred) or input.cell.adjoint:
        return NotImplemented
    session = input.cell.session
    reason = _reason(input, weight, bias, *options, **keywords)
    plan = None if reason else conv_plan(input.cell.segments, weight)
    if reason or plan is None:
        session.refused("conv2d", reason or "no form without the map would be faster")
        return NotImplemented

    segments = input.cell.segments
    stored = sum(s.channels for s in segments if s.geometry is not None) + (len(segments) > 1) * input.shape[1]
    size = stored * input.element_size() * input.shape[0] * pixels(input.shape[2:])
    flop = plan.flop_saved(segments, weight, input.shape[0])
    session.fused("conv2d", plan.name, size * (input.cell.value is None), flop)
    # As the stock convolution does, answer in the layout of the full map and the weight, whatever the parts are in.
    form = format_of(suggests_channels_last(input) or suggests_channels_last(weight))

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        result = plan.fused([t.contiguous(memory_format=form) for t in leaves], others)
        return result.contiguous(memory_format=form)

    def stock(full: Tensor, others: list[Any]) -> Tensor:
        result: Tensor = func(full, others[0], others[1], *options, **keywords)
        return result

    return run(fused, stock, input, weight, bias, geometry=plan.geometry)


def _reason(x: Any, weight: Any, bias: Any, *options: Any, **keywords: Any) -> str | None:
    """Why the stock convolution has to run, or None."""
    cell = x.cell
    if not cell.session.conv or not supported():
        return "switched off here"
    if cell.kind != "map" or not cell.fusable:
        return "the map was changed"
    if any(t is not None and type(t) not in (Tensor, torch.nn.Parameter) for t in (weight, bias)) or weight is None:
        return "weight or bias is no plain tensor"
    reason = refusal(weight, *options, **keywords)
    if reason is not None:
        return reason
    if weight.shape[1] != x.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return "the stock operator's own check"
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x.device.type):
        return "the stock operator's own check"
    return None


RULES[torch.conv2d] = _conv2d
