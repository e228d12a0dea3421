"""Which functions write to their arguments."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast.backend import constant_in_graphs

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")


def _writing() -> frozenset[Callable[..., Any]]:
    # requires_grad_ changes what is recorded, and no values.
    named = [
        getattr(owner, name)
        for owner in (Tensor, torch, F, torch._C._nn)
        for name in dir(owner)
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    ]
    # Under torch.compile `x += y` is a call of operator.iadd.
    operators = [getattr(Tensor, f"__i{name}__", None) for name in _OPERATORS]
    operators += [getattr(operator, f"i{name}") for name in _OPERATORS]
    return frozenset(f for f in (*named, *operators, Tensor.__setitem__, operator.setitem) if callable(f))


def _optional() -> dict[Callable[..., Any], int]:
    found: dict[Callable[..., Any], int] = {}
    for function in vars(F).values():
        if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters:
            found[function] = list(inspect.signature(function).parameters).index("inplace")
    return found


WRITING = _writing()
OPERATORS = torch._ops.OpOverload, torch._ops.OpOverloadPacket  # of torch.ops; their schemas tell
# The position of the argument ``inplace`` of those that have one.
INPLACE = _optional()


_NEVER, _ALWAYS = -1, -2


@constant_in_graphs
def _kind(func: Callable[..., Any]) -> int:
    if isinstance(func, torch._ops.OpOverloadPacket):
        overloads = [getattr(func, name) for name in func.overloads()]
        return _ALWAYS if any(overload._schema.is_mutable for overload in overloads) else _NEVER
    if isinstance(func, torch._ops.OpOverload):
        return _ALWAYS if func._schema.is_mutable else _NEVER
    return _ALWAYS if func in WRITING else INPLACE.get(func, _NEVER)


def writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``func(*args, **kwargs)`` writes to a tensor that it is given."""
    kind = _kind(func)
    if kind == _ALWAYS or "out" in kwargs:
        return True
    return kind != _NEVER and bool(kwargs.get("inplace", args[kind] if len(args) > kind else False))
