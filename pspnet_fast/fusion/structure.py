"""Operators below autograd whose result on a deferred tensor is deferred again.

Maps and their gradients follow the same rules: slicing, concatenating, adding and casting act on the segments. The
graph stays the stock one: the backward of ``torch.cat`` slices a deferred gradient, that of ``x[:, 2:5]`` pads it, and
upsampling takes the low-resolution gradient out of it (upsampling.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.deferred import STRUCTURE, Deferred, Form, alias, form_of, wrap
from pspnet_fast.fusion.segments import Segment

aten = torch.ops.aten


def structure(*overloads: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        STRUCTURE.update(dict.fromkeys(overloads, handler))
        return handler

    return register


def is_map(x: Any) -> bool:
    return isinstance(x, Deferred) and x.cell.kind == "map" and x.dim() == 4 and x.cell.fusable


def derive(
    func: Any, args: tuple[Any, ...], segments: Sequence[Segment], view: bool = False, kind: Any = None, **keywords: Any
) -> Deferred:
    """The deferred result of ``func(*args, **keywords)``, which consists of ``segments`` and is computed from ``args``.

    It is of the ``kind`` of the first map where none is given, and a ``view`` of it, or not.
    """
    maps = [a for a in tree_leaves(args) if isinstance(a, Deferred)]
    first = maps[0].cell
    read = Cell.materialise if view else Cell.peek
    cell = Cell(
        lambda: func(*tree_map_only(Deferred, lambda x: read(x.cell), args), **keywords),
        segments,
        first.session,
        bases=list(dict.fromkeys(x.cell for x in maps)),
        view=view,
        kind=kind or first.kind,
        adjoint=first.adjoint,
        site=first.site,
    )
    return wrap(cell, _result(func, _forms(args), tuple(keywords.items())), maps[0].device)


# No local functions: one that calls itself is a cycle, and what it refers to, the graph of a step, would be kept until
# Python collects garbage.


def _forms(a: Any) -> Any:
    """``a`` with the form of each tensor, as a key of a cache."""
    if isinstance(a, (list, tuple)):
        return tuple(_forms(e) for e in a)
    return form_of(a) if isinstance(a, Tensor) else a


def _metas(a: Any) -> Any:
    if isinstance(a, Form):
        return a.meta()
    return [_metas(e) for e in a] if isinstance(a, tuple) else a


# Shapes are the same in every step, and an operator on meta tensors takes longer than all else here.
@functools.lru_cache(maxsize=1024)
def _result(func: Any, arguments: Any, keywords: tuple[tuple[str, Any], ...]) -> Form:
    """The form of the result of ``func``."""
    return form_of(func(*_metas(arguments), **dict(keywords)))


@structure(aten.detach.default, aten.alias.default)
def _same(func: Any, x: Deferred) -> Any:
    return alias(x.cell, form_of(x), x.device)


@structure(aten.view.default, aten._unsafe_view.default)
def _view(func: Any, x: Deferred, size: Sequence[int]) -> Any:
    if list(size) != list(x.shape):
        return NotImplemented
    return alias(x.cell, _result(func, _forms((x, size)), ()), x.device)


@structure(aten.clone.default)
def _clone(func: Any, x: Deferred, memory_format: Any = None) -> Any:
    cell = x.cell
    if cell.build is None or cell.view or not cell.fusable or memory_format not in (None, torch.preserve_format):
        return NotImplemented
    copy = Cell(
        cell.build,
        cell.segments,
        cell.session,
        bases=cell.bases,
        kind=cell.kind,
        adjoint=cell.adjoint,
        site=cell.site,
    )
    return wrap(copy, form_of(x), x.device)


@structure(
    *(getattr(aten, name).default for name in ("zeros_like", "ones_like", "empty_like", "full_like")),
    *(getattr(aten, name).default for name in ("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided")),
)
def _of_same_type(func: Any, x: Deferred, *args: Any, **keywords: Any) -> Any:
    # Nothing is read: memory that is never touched stands in.
    return func(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device), *args, **keywords)


@structure(aten.slice.Tensor)
def _slice(func: Any, x: Deferred, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    if dim not in (1, -3) or step != 1 or not is_map(x):
        return NotImplemented
    start, stop, _ = slice(start, end).indices(x.shape[1])
    segments = _narrow(x.cell.segments, start, max(start, stop))
    if x.cell.adjoint and len(segments) == 1 and segments[0].geometry is None:
        return aten.alias.default(segments[0].tensor)  # autograd gives the result another version counter
    return derive(func, (x, 1, start, stop), segments, view=True)


def _narrow(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    result, at = [], 0
    for s in segments:
        first, last = max(start - at, 0), min(stop - at, s.channels)
        if first < last:
            result.append(s.narrow(first, last))
        at += s.channels
    return result


@structure(aten.split.Tensor, aten.split_with_sizes.default)
def _split(func: Any, x: Deferred, sizes: Any, dim: int = 0) -> Any:
    if dim not in (1, -3) or not is_map(x):
        return NotImplemented
    channels = x.shape[1]
    if isinstance(sizes, int):
        sizes = [min(sizes, channels - i) for i in range(0, channels, sizes)] if sizes > 0 else []
    if sum(sizes) != channels or min(sizes) < 0:
        return NotImplemented
    ends = itertools.accumulate(sizes)
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
    return derive(func, (grad, sizes, dim, start, end, step), segments)


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
    return derive(func, (list(tensors), 1), segments)


def _is_linear(cell: Cell) -> bool:
    """Whether sums and casts act on the segments, none of which would be kept at full resolution as well as these."""
    is_low = cell.kind == "map" and all(s.geometry is not None for s in cell.segments)
    return cell.fusable and (cell.adjoint or is_low)


@structure(aten.add.Tensor)
def _add(func: Any, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    if alpha != 1 or not (isinstance(x, Deferred) and isinstance(y, Deferred)) or x.dtype != y.dtype:
        return NotImplemented
    a, b = x.cell, y.cell
    if not (_is_linear(a) and _is_linear(b)) or (a.kind, a.adjoint) != (b.kind, b.adjoint):
        return NotImplemented
    if [(s.geometry, s.tensor.shape) for s in a.segments] != [(s.geometry, s.tensor.shape) for s in b.segments]:
        return NotImplemented
    pairs = zip(a.segments, b.segments, strict=True)
    segments = [Segment(s.tensor + t.tensor, s.geometry, s.requires_grad or t.requires_grad) for s, t in pairs]
    return derive(func, (x, y), segments)


@structure(aten._to_copy.default)
def _cast(func: Any, x: Deferred, **keywords: Any) -> Any:
    dtype = keywords.get("dtype")
    others = [v for k, v in keywords.items() if k not in ("dtype", "non_blocking") and v is not None]
    if dtype is None or not dtype.is_floating_point or others or not _is_linear(x.cell):
        return NotImplemented
    return derive(func, (x,), [s.to(dtype) for s in x.cell.segments], dtype=dtype)


@structure(aten._softmax.default, aten._log_softmax.default)
def _softmax(func: Any, x: Deferred, dim: int, half_to_float: bool) -> Any:
    if dim not in (1, -3) or half_to_float or not is_map(x) or x.cell.adjoint or len(x.cell.segments) != 1:
        return NotImplemented
    kind = func.overloadpacket.__name__.removeprefix("_")
    return derive(func, (x, dim, False), x.cell.segments, kind=kind)


@structure(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def _softmax_backward(func: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if not (isinstance(grad, Deferred) and isinstance(output, Deferred) and grad.cell.fusable):
        return NotImplemented
    if grad.cell.kind != output.cell.kind or grad.dtype != dtype:
        return NotImplemented
    return derive(func, (grad, output, dim, dtype), grad.cell.segments, kind="map")
