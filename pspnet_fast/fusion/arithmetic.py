"""Arithmetic on deferred maps and gradients: sums, casts, and the softmax over classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pspnet_fast.fusion.deferred import Deferred
from pspnet_fast.fusion.segments import Segment
from pspnet_fast.fusion.structure import aten, derive, is_map, structure


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
    segments = [s.to(dtype) for s in x.cell.segments]
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
