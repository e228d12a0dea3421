"""``with fuse():`` - the block in which upsampling is deferred."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pspnet_fast.fusion.cells import before_write
from pspnet_fast.fusion.fused import supported
from pspnet_fast.fusion.report import FusionReport, Session
from pspnet_fast.fusion.upsampling import interpolate

_top_saved_tensor_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


class fuse(TorchFunctionMode):  # noqa: N801 - used like a function
    """In this block bilinear upsampling is deferred, and what follows it is fused where a rule applies.

    Tensors made in the block stay deferred after it. Values and gradients are the stock operators', to rounding.

    Args:
        loss: fuse cross-entropies.
        conv: fuse convolutions over (concatenations of) upsampled maps.
        argmax: fuse arg-max over classes.

    Attributes:
        report: a :class:`FusionReport` of the block.
    """

    def __init__(
        self,
        *,
        loss: bool = True,
        conv: bool = True,
        argmax: bool = True,
        report: FusionReport | None = None,
        root: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.report = FusionReport() if report is None else report
        self.session = Session(loss, conv, argmax, self.report, root)
        self._hooks: Any = None

    def __enter__(self) -> fuse:
        self._hooks = _top_saved_tensor_hooks(True)
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = _HANDLED.get(func)
        if kind is None and not (kwargs and "out" in kwargs):
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if kind == "interpolate":
            result = self._interpolate(args, kwargs)
            if result is not NotImplemented:
                return result
        elif not isinstance(kind, int) or _flag(kind, args, kwargs):
            before_write([t for t in _flat((args, tuple(kwargs.values()))) if isinstance(t, Tensor)])
        return func(*args, **kwargs)

    def _interpolate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not supported() or torch.compiler.is_compiling():
            return NotImplemented
        # A region that is checkpointed inside this block is computed again outside it, and must save the same tensors.
        if _top_saved_tensor_hooks(True) is not self._hooks and _top_saved_tensor_hooks(True) != self._hooks:
            self.session.refused("interpolate", "inside saved-tensor hooks (activation checkpointing)")
            return NotImplemented
        return interpolate(self.session, *args, **kwargs)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


def _flag(position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("inplace", args[position] if len(args) > position else False))


def _handled() -> dict[Any, Any]:
    """What the mode does not pass on at once: upsampling, and whatever writes to its arguments.

    The value is "interpolate", "write", or the position of the argument ``inplace``.
    """
    handled: dict[Any, Any] = {}
    for owner in (Tensor, torch, F):
        for name in dir(owner):
            if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
                handled[getattr(owner, name, None)] = "write"
    handled[Tensor.__setitem__] = "write"
    for name in dir(F):
        function = getattr(F, name)
        if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters:
            handled[function] = list(inspect.signature(function).parameters).index("inplace")
    # Tensor.__int__, __invert__ and __index__ begin like the in-place operators.
    for name in ("__int__", "__invert__", "__index__", "__init__", "__init_subclass__", "__iter__"):
        handled.pop(getattr(Tensor, name, None), None)
    handled[F.interpolate] = "interpolate"
    return handled


_HANDLED = _handled()
