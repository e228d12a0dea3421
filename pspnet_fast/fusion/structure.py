"""Operators below autograd whose result on a deferred tensor is deferred again.

Maps and their gradients follow the same rules: slicing and concatenating (channels.py), adding and casting act on the
segments. The graph stays the stock one: the backward of ``torch.cat`` slices a deferred gradient, that of ``x[:, 2:5]``
pads it, and upsampling takes the low-resolution gradient out of it (upsampling.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.fusion.cells import Cell, Segment
from pspnet_fast.fusion.deferred import STRUCTURE, Deferred, alias, wrap

aten = torch.ops.aten


def structure(*overloads: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        STRUCTURE.update(dict.fromkeys(overloads, handler))
        return handler

    return register


def meta(x: Tensor) -> Tensor:
    """An empty tensor of the same shape, strides and dtype, for finding out those of a result."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def is_map(x: Any) -> bool:
    return isinstance(x, Deferred) and x.cell.kind == "map" and x.dim() == 4 and x.cell.fusable


def derive(
    func: Any,
    args: tuple[Any, ...],
    segments: Sequence[Segment],
    of: Sequence[Deferred],
    *,
    view: bool = False,
    kind: str | None = None,
    keywords: dict[str, Any] | None = None,
) -> Deferred:
    """The deferred result of ``func(*args)``, which consists of ``segments`` and is computed from the maps ``of``.

    It is of the ``kind`` of the first map, where none is given.
    """
    cells = {id(x): x.cell for x in of}
    first = of[0].cell

    def value(a: Any) -> Any:
        if isinstance(a, (list, tuple)):
            return [value(e) for e in a]
        if id(a) not in cells:
            return a
        return cells[id(a)].materialise() if view else cells[id(a)].peek()

    def shape(a: Any) -> Any:
        if isinstance(a, (list, tuple)):
            return [shape(e) for e in a]
        return meta(a) if isinstance(a, Tensor) else a

    cell = Cell(
        lambda: func(*map(value, args), **(keywords or {})),
        segments,
        first.session,
        bases=list(cells.values()),
        view=view,
        kind=kind or first.kind,
        adjoint=first.adjoint,
        site=first.site,
    )
    return wrap(cell, func(*map(shape, args), **(keywords or {})), of[0].device)


@structure(aten.detach.default, aten.alias.default)
def _same(func: Any, x: Deferred) -> Any:
    return alias(x.cell, x.shape, x.stride(), x.dtype, x.device)


@structure(aten.view.default, aten._unsafe_view.default)
def _view(func: Any, x: Deferred, size: Sequence[int]) -> Any:
    if list(size) != list(x.shape):
        return NotImplemented
    return alias(x.cell, x.shape, func(meta(x), size).stride(), x.dtype, x.device)


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
    return wrap(copy, x, x.device)


@structure(aten.add.Tensor)
def _add(func: Any, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    if alpha != 1 or not (isinstance(x, Deferred) and isinstance(y, Deferred)):
        return NotImplemented
    a, b = x.cell, y.cell
    if not (a.fusable and b.fusable) or (a.kind, a.adjoint) != (b.kind, b.adjoint) or x.dtype != y.dtype:
        return NotImplemented
    layouts = [[(s.geometry, s.tensor.shape) for s in cell.segments] for cell in (a, b)]
    if (a.kind != "map" and not a.adjoint) or layouts[0] != layouts[1]:
        return NotImplemented
    if not a.adjoint and any(geometry is None for geometry, _ in layouts[0]):
        return NotImplemented  # the sum of full-resolution maps would be kept as well as these
    pairs = zip(a.segments, b.segments, strict=True)
    segments = [Segment(s.tensor + t.tensor, s.geometry, s.requires_grad or t.requires_grad) for s, t in pairs]
    return derive(func, (x, y), segments, [x, y])


@structure(aten._to_copy.default)
def _cast(func: Any, x: Deferred, **keywords: Any) -> Any:
    dtype = keywords.get("dtype")
    others = [v for k, v in keywords.items() if k not in ("dtype", "non_blocking") and v is not None]
    if dtype is None or not dtype.is_floating_point or others or not x.cell.fusable:
        return NotImplemented
    if x.cell.kind != "map" and not x.cell.adjoint:
        return NotImplemented
    if not x.cell.adjoint and any(s.geometry is None for s in x.cell.segments):
        return NotImplemented
    segments = [Segment(s.tensor.to(dtype), s.geometry, s.requires_grad) for s in x.cell.segments]
    return derive(func, (x,), segments, [x], keywords={"dtype": dtype})


@structure(aten._softmax.default, aten._log_softmax.default)
def _softmax(func: Any, x: Deferred, dim: int, half_to_float: bool) -> Any:
    if dim not in (1, -3) or half_to_float or not is_map(x) or x.cell.adjoint or len(x.cell.segments) != 1:
        return NotImplemented
    kind = func.overloadpacket.__name__.removeprefix("_")
    return derive(func, (x, dim, False), x.cell.segments, [x], kind=kind)


@structure(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def _softmax_backward(func: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if not (isinstance(grad, Deferred) and isinstance(output, Deferred) and grad.cell.fusable):
        return NotImplemented
    if grad.cell.kind != output.cell.kind or grad.dtype != dtype:
        return NotImplemented
    return derive(func, (grad, output, dim, dtype), grad.cell.segments, [grad, output], kind="map")


@structure(
    *(getattr(aten, name).default for name in ("zeros_like", "ones_like", "empty_like", "full_like")),
    *(getattr(aten, name).default for name in ("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided")),
)
def _of_same_type(func: Any, x: Deferred, *args: Any, **keywords: Any) -> Any:
    # Nothing is read: memory that is never touched stands in.
    return func(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device), *args, **keywords)
