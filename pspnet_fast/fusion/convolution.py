"""Convolutions over upsampled maps and over their concatenations, without either.

Upsampling and convolution are linear. A 1x1 convolution commutes with the upsampling, bias included, because the
weights of an interpolation sum to one; so it runs at low resolution, and its result is upsampled and added. A 3x3
convolution over levels that ``pyramid_conv`` takes is one call of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import ops
from pspnet_fast.fusion.cells import Geometry, Segment
from pspnet_fast.fusion.cost import conv_flop, pixels, pointwise_pays, pyramid_pays
from pspnet_fast.fusion.deferred import RULES, Deferred
from pspnet_fast.fusion.fused import Plan, assemble, run, supported


def _conv2d(
    func: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not isinstance(input, Deferred) or input.cell.adjoint or input.cell.session is None:
        return NotImplemented
    session = input.cell.session
    reason = _reason(input, weight, bias, stride, padding, dilation, groups)
    plan = None if reason else _plan(input.cell.segments, weight, tuple(input.shape))
    if reason or plan is None:
        session.refused("conv2d", reason or "no form without the map would be faster")
        return NotImplemented

    def stock(full: Tensor, others: list[Any]) -> Tensor:
        result: Tensor = func(full, others[0], others[1], stride, padding, dilation, groups)
        return result

    operator, fused, geometry, flop = plan
    copied = len(input.cell.segments) > 1
    lows = sum(s.channels for s in input.cell.segments if s.geometry is not None)
    saved = (copied * input.shape[1] + lows) * input.element_size() * input.shape[0] * pixels(input.shape[2:])
    session.fused("conv2d", operator, saved * (input.cell.value is None), flop)
    # As the stock convolution does, answer in the layout of the full map, whatever its parts are in.
    nhwc = input.stride(1) == 1 and input.stride(0) >= input.stride(2) and not input.is_contiguous()
    form = torch.channels_last if nhwc else torch.contiguous_format

    def in_layout(leaves: list[Tensor], others: list[Any]) -> Tensor:
        result: Tensor = fused([t.contiguous(memory_format=form) for t in leaves], others)
        return result.contiguous(memory_format=form)

    return run(Plan(in_layout, stock, geometry), input, weight, bias)


def _reason(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> str | None:
    """Why the stock convolution has to run, or None."""
    cell = x.cell
    if not cell.session.conv or not supported():
        return "switched off here"
    if cell.kind != "map" or not cell.fusable:
        return "the map was changed"
    if any(t is not None and type(t) not in (Tensor, torch.nn.Parameter) for t in (weight, bias)) or weight is None:
        return "weight or bias is no plain tensor"
    kernel = tuple(weight.shape[2:])
    if kernel not in ((1, 1), (3, 3)) or groups != 1 or _pair(stride) != (1, 1) or _pair(dilation) != (1, 1):
        return (
            f"kernel {kernel}, stride {stride}, dilation {dilation}, groups {groups}: only dense 1x1 and 3x3 are fused"
        )
    if padding != "same" and (isinstance(padding, str) or _pair(padding) != (kernel[0] // 2, kernel[1] // 2)):
        return f"padding {padding} changes the size"
    if weight.shape[1] != x.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return "the stock operator's own check"
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x.device.type):
        return "the stock operator's own check"
    return None


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, Sequence) and len(value) == 2 else (value, value)


def _plan(segments: list[Segment], weight: Tensor, shape: Sequence[int]) -> Any:
    """``(name, Plan.fused, Plan.geometry, FLOP saved)``, or None if the stock form is as good."""
    out_channels, kernel = weight.shape[0], weight.shape[2]
    pyramid = _as_pyramid(segments, kernel)
    if pyramid is not None and (kernel == 3 or max(pyramid[0]) <= _SMALL):
        ups = [s.geometry for s in segments if s.geometry is not None]
        used = kernel if kernel == 3 else 1
    elif kernel == 1:
        paying = [s for s in segments if pointwise_pays(s, out_channels)]
        if not paying:
            return None
        pyramid, ups, used = None, [s.geometry for s in paying if s.geometry is not None], 1
    else:
        return None

    fewer = [(s.channels, s.geometry) for s in segments if s.geometry in ups and s.geometry is not None]
    flop = sum(
        conv_flop(shape[0], out_channels, c, used, g.full) - conv_flop(shape[0], out_channels, c, used, g.low)
        for c, g in fewer
    )
    if pyramid is not None:
        bins, x_first = pyramid
        return "pyramid_conv", _pyramid(segments, bins, x_first), None, flop
    kept = {s.geometry for s in segments}
    single = ups[0] if len(kept) == 1 and len(ups) == len(segments) else None
    return "1x1 at low resolution", _pointwise(segments, out_channels, single is None), single, flop


# Levels up to this side are multiplied as pyramid_conv does it, in 1x1 convolutions too.
_SMALL = 8


def _as_pyramid(segments: list[Segment], kernel: int) -> tuple[list[int], bool] | None:
    """``(bins, x_first)`` if ``pyramid_conv`` takes the segments: square levels of one width, and x first or last."""
    is_level = [s.geometry is not None for s in segments]
    levels = [s for s in segments if s.geometry is not None]
    count = len(levels)
    if not levels or count == len(segments):
        return None
    x_first = is_level == [False] * (len(segments) - count) + [True] * count
    if not x_first and is_level != [True] * count + [False] * (len(segments) - count):
        return None
    geometries: list[Geometry] = [s.geometry for s in levels if s.geometry is not None]
    if len({s.channels for s in levels}) > 1 or len({g.align_corners for g in geometries}) > 1:
        return None
    if any(g.low[0] != g.low[1] for g in geometries) or not pyramid_pays(geometries):
        return None
    return [g.low[0] for g in geometries], x_first


def _pyramid(segments: list[Segment], bins: list[int], x_first: bool) -> Any:
    align_corners = next(s.geometry.align_corners for s in segments if s.geometry is not None)

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        dense = [t for t, s in zip(leaves, segments, strict=True) if s.geometry is None]
        lows = [t.flatten(2) for t, s in zip(leaves, segments, strict=True) if s.geometry is not None]
        x = dense[0] if len(dense) == 1 else torch.cat(dense, dim=1)
        options: dict[str, Any] = {"bins": bins, "align_corners": align_corners, "x_first": x_first}
        return ops.pyramid_conv(x, torch.cat(lows, dim=2), others[0], others[1], **options)

    return fused


def _pointwise(segments: list[Segment], out_channels: int, upsample: bool) -> Any:
    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        weight, bias = others
        groups: dict[Geometry | None, tuple[list[Tensor], list[Tensor]]] = {}
        for leaf, s, part in zip(leaves, segments, weight.split([s.channels for s in segments], dim=1), strict=True):
            low = pointwise_pays(s, out_channels)
            tensors, parts = groups.setdefault(s.geometry if low else None, ([], []))
            tensors.append(leaf if low else assemble([Segment(leaf, s.geometry, False)], "map"))
            parts.append(part)

        result: Tensor | None = None
        for geometry in sorted(
            groups, key=lambda g: g is not None
        ):  # the dense part first: the others are added into it
            tensors, parts = groups[geometry]
            x, w = (t[0] if len(t) == 1 else torch.cat(t, dim=1) for t in (tensors, parts))
            term = F.conv2d(x, w, bias if result is None else None)
            if geometry is not None and upsample:
                term = F.interpolate(term, geometry.full, mode="bilinear", align_corners=geometry.align_corners)
            result = term if result is None else result.add_(term)
        assert result is not None
        return result

    return fused


RULES[torch.conv2d] = _conv2d
