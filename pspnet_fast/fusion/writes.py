"""Which functions write to their arguments."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Those that have an argument ``inplace``, and its position."""
    functions = [f for f in vars(F).values() if inspect.isfunction(f) and "inplace" in inspect.signature(f).parameters]
    return {f: list(inspect.signature(f).parameters).index("inplace") for f in functions}


_ALWAYS = -1
_POSITIONS = _optional() | dict.fromkeys(_writing(), _ALWAYS)
_OF_SCHEMAS = torch._ops.OpOverload, torch._ops.OpOverloadPacket


def writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``func(*args, **kwargs)`` writes to a tensor that it is given."""
    position = _POSITIONS.get(func)
    if position is None:  # most calls
        return "out" in kwargs or (isinstance(func, _OF_SCHEMAS) and _is_mutable(func))
    if position == _ALWAYS or "out" in kwargs:
        return True
    return bool(kwargs.get("inplace", args[position] if len(args) > position else False))


def _is_mutable(func: Any) -> bool:
    if isinstance(func, torch._ops.OpOverloadPacket):
        return any(getattr(func, name)._schema.is_mutable for name in func.overloads())
    return bool(func._schema.is_mutable)
