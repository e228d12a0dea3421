"""``with fuse():`` - the block in which upsampling is deferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pspnet_fast.fusion.cells import LIVE, before_write
from pspnet_fast.fusion.deferred import MEMORY
from pspnet_fast.fusion.fused import supported
from pspnet_fast.fusion.report import FusionReport, Session, calling_modules
from pspnet_fast.fusion.traced import TracedFuse
from pspnet_fast.fusion.upsampling import interpolate
from pspnet_fast.fusion.writes import writes
from pspnet_fast.ops.operator import exporting

_is_compiling = torch.compiler.is_dynamo_compiling
_top_saved_tensor_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def fuse(*, loss: bool = True, conv: bool = True, argmax: bool = True) -> Fuse | TracedFuse:
    """In this block bilinear upsampling is deferred, and what follows it is fused where a rule applies.

    Tensors made in the block stay deferred after it. Values and gradients are the stock operators', to rounding.

    Args:
        loss: fuse cross-entropies.
        conv: fuse convolutions over (concatenations of) upsampled maps.
        argmax: fuse arg-max over classes.

    Returns:
        a context manager; its attribute ``report`` is a :class:`FusionReport` of the block.
    """
    if torch.compiler.is_dynamo_compiling() and not exporting():
        return TracedFuse(loss, conv, argmax)
    return Fuse(loss=loss, conv=conv, argmax=argmax)


def compile_options(*, loss: bool = True, conv: bool = True) -> dict[str, Any]:
    """Options with which ``torch.compile`` fuses what it shows to no mode, as in models of transformers.

    ``torch.compile(pspnet_fast.accelerate(model), options=pspnet_fast.compile_options())``. Dynamo hides a criterion
    that is made inside a forward, and all that stands behind a graph break. Everything else is fused without these
    options as well.

    Args:
        loss: fuse cross-entropies.
        conv: fuse convolutions over (concatenations of) upsampled maps, of shapes that the compiler knows.

    Returns:
        a new dictionary, to be added to other options.
    """
    from pspnet_fast.fusion.inductor import FuseUpsampled

    return {"pre_grad_custom_pass": FuseUpsampled(loss, conv)}


class Fuse(TorchFunctionMode):
    """:func:`fuse` outside ``torch.compile``; ``root`` is the module whose paths the report gives."""

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
        # For quiet.py: ids of the modules that run without this mode; whether a tensor was deferred; and, in the first
        # call of a model, ids of the modules inside which F.interpolate is called.
        self.quiet: frozenset[int] = frozenset()
        self.deferred = False
        self.upsampling: set[int] | None = None

    def __enter__(self) -> Fuse:
        self._hooks = _top_saved_tensor_hooks(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.session.projections.clear()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _is_compiling():
            return func(*args, **kwargs) if kwargs else func(*args)
        if func is F.interpolate:
            result = self._interpolate(args, kwargs or {})
            if result is not NotImplemented:
                return result
        elif func is F.linear:
            result = func(*args, **kwargs) if kwargs else func(*args)
            if not kwargs:
                self.session.projections.note(result, *args)
            return result
        elif func in _UNSEEN_WRITES and self.session.projections.pending:
            self.session.projections.clear()
        elif _alive and writes(func, args, kwargs or _NONE):
            before_write([t for t in _flat((args, tuple((kwargs or {}).values()))) if isinstance(t, Tensor)])
        return func(*args, **kwargs) if kwargs else func(*args)

    def _interpolate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.upsampling is not None:
            self.upsampling |= calling_modules()
        if not supported():
            return NotImplemented
        # A region that is checkpointed inside this block is computed again outside it, and must save the same tensors.
        if _top_saved_tensor_hooks(True) is not self._hooks and _top_saved_tensor_hooks(True) != self._hooks:
            self.session.refused("interpolate", "inside saved-tensor hooks (activation checkpointing)")
            return NotImplemented
        result = interpolate(self.session, *args, **kwargs)
        self.deferred |= result is not NotImplemented
        return result


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


# What gives access to a tensor's memory without its version.
_UNSEEN_WRITES = MEMORY | {Tensor.data.__get__, Tensor.data.__set__}  # type: ignore[attr-defined]
_NONE: dict[str, Any] = {}
_alive = LIVE.data  # type: ignore[attr-defined]  # the dictionary inside, whose truth costs no call
