"""Channels of deferred maps, and of their gradients: slicing, splitting, concatenating."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.fusion.deferred import Deferred
from pspnet_fast.fusion.segments import Segment
from pspnet_fast.fusion.structure import aten, derive, is_map, structure


@structure(aten.slice.Tensor)
def _slice(func: Any, x: Deferred, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    if dim not in (1, -3) or step != 1 or not is_map(x):
        return NotImplemented
    start, stop, _ = slice(start, end).indices(x.shape[1])
    segments = _narrow(x.cell.segments, start, max(start, stop))
    if x.cell.adjoint and len(segments) == 1 and segments[0].geometry is None:
        return aten.alias.default(segments[0].tensor)  # autograd gives the result another version counter
    return derive(func, (x, 1, start, stop), segments, [x], view=True)


def _narrow(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    result, at = [], 0
    for s in segments:
        first, last = max(start - at, 0), min(stop - at, s.channels)
        if first < last:
            result.append(s.narrow(first, last))
        at += s.channels
    return result


@structure(aten.split.Tensor)
def _split(func: Any, x: Deferred, size: int, dim: int = 0) -> Any:
    if dim not in (1, -3) or not is_map(x) or size < 1:
        return NotImplemented
    return [_slice(aten.slice.Tensor, x, 1, i, i + size) for i in range(0, x.shape[1], size)]


@structure(aten.split_with_sizes.default)
def _split_with_sizes(func: Any, x: Deferred, sizes: Sequence[int], dim: int = 0) -> Any:
    if dim not in (1, -3) or not is_map(x) or sum(sizes) != x.shape[1] or min(sizes) < 0:
        return NotImplemented
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [_slice(aten.slice.Tensor, x, 1, end - size, end) for end, size in zip(ends, sizes, strict=True)]


@structure(aten.slice_backward.default)
def _slice_backward(func: Any, grad: Deferred, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Any:
    if dim not in (1, -3) or step != 1 or not is_map(grad):
        return NotImplemented
    start, stop, _ = slice(start, end).indices(sizes[1])

    def zeros(channels: int) -> list[Segment]:
        shape = (sizes[0], channels, *sizes[2:])
        filling = torch.zeros((), dtype=grad.dtype, device=grad.device).expand(shape)
        return [Segment(filling, None, False)] if channels else []

    segments = [*zeros(start), *grad.cell.segments, *zeros(sizes[1] - stop)]
    return derive(func, (grad, sizes, dim, start, end, step), segments, [grad])


@structure(aten.cat.default)
def _cat(func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    maps = [x for x in tensors if isinstance(x, Deferred) and is_map(x)]
    if dim not in (1, -3) or not maps or any(x.dim() != 4 for x in tensors):
        return NotImplemented
    if not maps[0].cell.session.conv or len({(x.shape[0], *x.shape[2:], x.device) for x in tensors}) != 1:
        return NotImplemented
    if len({x.cell.adjoint for x in maps}) != 1:
        return NotImplemented
    # Under a GPU's autocast, upsampled maps are float32 and others are not; the result has the wider dtype.
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    segments: list[Segment] = []
    for x in tensors:
        if isinstance(x, Deferred) and is_map(x):
            segments += [s.to(dtype) for s in x.cell.segments]
        else:
            dense = x.cell.materialise() if isinstance(x, Deferred) else x
            projection = maps[0].cell.session.projections.of(dense)
            needed = x.requires_grad or not torch.is_grad_enabled()
            segments.append(Segment(dense, None, needed, projection).to(dtype))
    return derive(func, (list(tensors), 1), segments, [x for x in tensors if isinstance(x, Deferred)])
