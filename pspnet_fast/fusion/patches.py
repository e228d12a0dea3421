"""A module with a ``forward`` of its own, and how it gets its class's back."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]


def is_patched(module: nn.Module, mark: str) -> bool:
    """Whether the module has a forward that :func:`patch` marked so."""
    function = getattr(module.__dict__.get("forward"), "__func__", None)
    return getattr(function, "_patch", None) == mark


def patch(module: nn.Module, mark: str, make: Callable[[Forward, bool], Forward]) -> None:
    """Give this instance the forward ``make(forward, bound)``; a bound one has to be given the module as well."""
    own = module.__dict__.get("forward")
    bound = own is None or getattr(own, "__self__", None) is module
    function = make(getattr(module.forward, "__func__", module.forward), bound)
    function.__dict__.update(_patch=mark, _original=own)
    module.__dict__["forward"] = types.MethodType(function, module)
    module.__dict__["_replicate_for_data_parallel"] = types.MethodType(_replicate, module)


def unpatch(module: nn.Module) -> None:
    """Undo :func:`patch`."""
    original = module.__dict__.pop("forward").__func__.__dict__["_original"]
    if original is not None:
        module.__dict__["forward"] = original
    module.__dict__.pop("_replicate_for_data_parallel", None)


@functools.wraps(nn.Module._replicate_for_data_parallel)
def _replicate(self: nn.Module) -> nn.Module:
    """``torch.nn.DataParallel`` copies attributes: the copy's forward must be bound to the copy."""
    replica: nn.Module = type(self)._replicate_for_data_parallel(self)
    for name in ("forward", "_replicate_for_data_parallel"):
        own = self.__dict__.get(name)
        if isinstance(own, types.MethodType) and own.__self__ is self:
            replica.__dict__[name] = types.MethodType(own.__func__, replica)
    return replica
