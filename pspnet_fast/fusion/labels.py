"""Arg-max over the classes of an upsampled map, or of its softmax: ``argmax``, ``max`` and ``topk(1)``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pspnet_fast import ops
from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.deferred import Deferred, form_of, wrap
from pspnet_fast.fusion.segments import Geometry
from pspnet_fast.fusion.structure import aten, structure


def _labels(x: Deferred, dim: int | None, operator: str) -> Tensor | None:
    """int64 labels ``[B, H, W]``, or None where the stock operator has to run."""
    cell = x.cell
    if dim not in (1, -3) or x.dim() != 4 or cell.adjoint or cell.session is None or not cell.session.argmax:
        return None
    if not cell.fusable or len(cell.segments) != 1 or x.numel() == 0:
        return None
    segment = cell.segments[0]
    if segment.geometry is None:
        return None
    geometry: Geometry = segment.geometry
    saved = x.numel() * x.element_size() * ((cell.value is None) + (cell.kind != "map"))
    cell.session.fused(operator, "upsample_argmax", saved)
    return ops.upsample_argmax(segment.tensor, geometry.full, align_corners=geometry.align_corners)


def _values(x: Deferred, labels: Tensor) -> Deferred:
    """The largest values, one per label ``[B, 1, H, W]``; few readers look at them."""
    cell = x.cell
    values = Cell(lambda: cell.peek().gather(1, labels), [], cell.session, bases=[cell], site=cell.site)
    return wrap(values, form_of(labels)._replace(dtype=x.dtype), x.device)


@structure(aten.argmax.default)
def _argmax(func: Any, x: Deferred, dim: int | None = None, keepdim: bool = False) -> Any:
    labels = _labels(x, dim, "argmax")
    if labels is None:
        return NotImplemented
    return labels.unsqueeze(1) if keepdim else labels


@structure(aten.max.dim)
def _max(func: Any, x: Deferred, dim: int, keepdim: bool = False) -> Any:
    labels = _labels(x, dim, "max")
    if labels is None:
        return NotImplemented
    values = _values(x, labels.unsqueeze(1))
    if keepdim:
        return values, labels.unsqueeze(1)
    cell = values.cell
    flat = Cell(lambda: cell.peek().squeeze(1), [], cell.session, bases=[cell], site=cell.site)
    return wrap(flat, form_of(labels)._replace(dtype=x.dtype), x.device), labels


@structure(aten.topk.default)
def _topk(func: Any, x: Deferred, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    labels = _labels(x, dim, "topk") if k == 1 and largest else None
    if labels is None:
        return NotImplemented
    return _values(x, labels.unsqueeze(1)), labels.unsqueeze(1)
