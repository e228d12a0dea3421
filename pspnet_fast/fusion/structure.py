"""Operators below autograd whose result on a deferred tensor is deferred again.

Maps and their gradients follow the same rules: slicing and concatenating (channels.py), adding and casting act on the
segments. The graph stays the stock one: the backward of ``torch.cat`` slices a deferred gradient, that of ``x[:, 2:5]``
pads it, and upsampling takes the low-resolution gradient out of it (upsampling.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
    cell = Cell(
        lambda: func(*_values(args, cells, keep=view), **(keywords or {})),
        segments,
        first.session,
        bases=list(cells.values()),
        view=view,
        kind=kind or first.kind,
        adjoint=first.adjoint,
        site=first.site,
    )
    return wrap(cell, _result(func, _forms(args), tuple((keywords or {}).items())), of[0].device)


# No local functions: one that calls itself is a cycle, and what it refers to, the graph of a step, would be kept until
# Python collects garbage.


def _values(a: Any, cells: Mapping[int, Cell], keep: bool) -> Any:
    """``a`` with the values of the tensors whose ids ``cells`` has, which keep them where they are wanted."""
    if isinstance(a, (list, tuple)):
        return [_values(e, cells, keep) for e in a]
    if id(a) not in cells:
        return a
    return cells[id(a)].materialise() if keep else cells[id(a)].peek()


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
