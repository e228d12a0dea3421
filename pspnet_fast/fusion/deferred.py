"""Tensors that know their shape, dtype and place in the autograd graph, and are computed when somebody reads them.

A :class:`Deferred` is an ordinary node of the graph: hooks, ``retain_grad``, ``torch.autograd.grad``, views, in-place
writes, checkpointing and DDP see the graph that stock operators give. Below autograd its values come from a
:class:`~pspnet_fast.fusion.cells.Cell`. Two tables decide what does not need the values: ``RULES`` has fused forms of
functions called on it, ``STRUCTURE`` has operators whose results, or gradients, are deferred again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.report import built

RULES: dict[Callable[..., Any], Callable[..., Any]] = {}
STRUCTURE: dict[Any, Callable[..., Any]] = {}

# Functions that read a tensor's memory without calling an operator.
MEMORY = {
    *(Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr, Tensor.__dlpack__),
    *(Tensor.untyped_storage, Tensor.storage, Tensor._typed_storage, Tensor.share_memory_, Tensor.is_shared),
    *(Tensor.__reduce_ex__, Tensor.__deepcopy__, Tensor.__repr__, Tensor.__format__),
}


class Form(NamedTuple):
    """What a tensor shows without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def meta(self) -> Tensor:
        """An empty tensor of this form, for finding out that of a result."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


def form_of(x: Tensor) -> Form:
    return Form(tuple(x.shape), x.stride(), x.dtype)


class Deferred(Tensor):
    """A tensor without values of its own; see the module's docstring. Made by :func:`wrap`."""

    cell: Cell

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MEMORY or any(not issubclass(t, (cls, torch.nn.Parameter)) and t is not Tensor for t in types):
            return func(*tree_map_only(cls, look, args), **tree_map_only(cls, look, kwargs))
        rule = RULES.get(func)
        with torch._C.DisableTorchFunctionSubclass():
            if rule is not None:
                result = rule(func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = STRUCTURE.get(func)
        if handler is not None:
            result = handler(func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return _run_on_values(func, args, kwargs)


@functools.cache
def _keep_from_dynamo() -> None:
    """Dynamo does not know what is deferred: where such a tensor comes into a compiled function, it runs uncompiled.

    Marked with the first such tensor, as this imports Dynamo, which takes as long as to import torch.
    """
    for name in ("__torch_function__", "__torch_dispatch__"):
        setattr(Deferred, name, classmethod(torch.compiler.disable(getattr(Deferred, name).__func__)))


def wrap(cell: Cell, form: Form, device: torch.device) -> Deferred:
    """The deferred tensor of a new ``cell``."""
    cell.strides = form.strides
    return alias(cell, form, device)


def alias(cell: Cell, form: Form, device: torch.device) -> Deferred:
    """Another deferred tensor of ``cell``."""
    _keep_from_dynamo()
    shape, strides, dtype = form
    result: Deferred = Tensor._make_wrapper_subclass(Deferred, shape, strides=strides, dtype=dtype, device=device)
    result.cell = cell
    return result


class _Look(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Deferred) -> Tensor:
        return x.cell.materialise().detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def look(x: Deferred, expose: bool = True) -> Tensor:
    """``x`` as a plain tensor of the same memory, for those who read that or know other kinds of tensors.

    Without ``expose`` the caller promises not to write to it.
    """
    with torch._C.DisableTorchFunction():
        if expose:
            x.cell.expose()
        built(x.cell, "code that reads its memory" if expose else "another upsampling")
        result: Tensor = _Look.apply(x)
        return result


@functools.cache
def _writes_and_views(func: Any) -> tuple[frozenset[str], tuple[int, ...], bool]:
    """Names and positions of the arguments that ``func`` writes to, and whether it returns views."""
    arguments = func._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    views = any(a.alias_info is not None and not a.alias_info.is_write for a in arguments)
    return frozenset(arguments[i].name for i in written), tuple(written), views


def _run_on_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names, positions, views = _writes_and_views(func)
    written = [args[i] for i in positions if i < len(args)] + [kwargs[n] for n in names if n in kwargs]
    for x in tree_leaves((args, kwargs)) if views else tree_leaves(written):
        if isinstance(x, Deferred):
            x.cell.expose()

    wrappers: dict[int, Deferred] = {}

    def value(x: Deferred) -> Tensor:
        built(x.cell, str(func.overloadpacket))
        values = x.cell.materialise()
        if values.stride() != x.stride():  # where a dimension has one element; views choose their strides freely
            values = values.as_strided(x.shape, x.stride())
        wrappers[id(values)] = x
        return values

    values = tree_map_only(Deferred, value, args), tree_map_only(Deferred, value, kwargs)
    result = func(*values[0], **values[1])
    if not written:
        return result
    for v in tree_leaves(values):
        x = wrappers.get(id(v))
        if x is not None and (v.shape != x.shape or v.stride() != x.stride()):
            raise RuntimeError(f"{func} changes the shape of a deferred tensor in place; call it on a copy")
    return tree_map_only(Tensor, lambda t: wrappers.get(id(t), t), result)
