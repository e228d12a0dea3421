"""Modules that upsample nothing run without the mode.

PyTorch hands every function that is called in a ``TorchFunctionMode`` to Python, which takes it a microsecond or two.
In a backbone of thousands of calls this is milliseconds, and a small network on a fast GPU waits for them. The first
call of a model notes which modules call ``F.interpolate``. In later calls of the same kind, the largest modules that do
not run with the mode suspended. A module that upsamples then all the same runs as it is written.

Linear layers whose results are upsampled (projection.py) run in the mode as well.

The mode also builds deferred tensors before what they are made of is written to. So it is not suspended once a call has
deferred a tensor, nor while one of an earlier call may be written to.

A module that runs otherwise has a ``forward`` of its own in its dictionary: :func:`patch` and :func:`unpatch`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves

from pspnet_fast.fusion.cells import may_be_written
from pspnet_fast.fusion.mode import Fuse

Forward = Callable[..., Any]
_MARK = "quiet"
_MOST_KINDS = 256  # of calls, which random sizes of images make endless


class QuietModules:
    """Of one accelerated model, for each kind of call: the ids of the largest modules that upsample nothing.

    And the ids of the weights of linear layers whose results are upsampled.
    """

    def __init__(self) -> None:
        self._kinds: dict[Any, tuple[frozenset[int], frozenset[int]]] = {}

    def run(self, mode: Fuse, model: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``call(*args, **kwargs)``, which is the forward of ``model``, inside ``mode``."""
        projections = mode.session.projections
        tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        forms = tuple((None if x.is_nested else x.shape, x.dtype) for x in tensors)
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        kind = model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, forms
        known = self._kinds.get(kind)
        if known is not None or getattr(model, "_is_replica", False):  # a replica lives for one call
            mode.quiet, projections.weights = known or (frozenset(), frozenset())
            return call(*args, **kwargs)
        mode.upsampling, projections.all = set(), True
        result = call(*args, **kwargs)
        mode.upsampling |= _containing(projections.used, model)
        found = list(_largest_without(mode.upsampling, model, {id(model)}))
        for module in found:
            if not is_patched(module, _MARK):
                patch(module, _MARK, _without_mode)
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = frozenset(map(id, found)), frozenset(projections.used)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> QuietModules:
        return QuietModules()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()  # a pickled model loads where this package is not installed


def restore_quiet(model: nn.Module) -> None:
    """Give the modules of ``model`` their classes' forward back."""
    for module in model.modules():
        if is_patched(module, _MARK):
            unpatch(module)


def _containing(weights: set[int], module: nn.Module) -> set[int]:
    """The ids of the modules below that have one of these parameters, or a module in which one has."""
    modules = list(module.modules())
    found = {id(m) for m in modules if any(id(p) in weights for p in m.parameters(recurse=False))}
    level = found
    while level:
        level = {id(m) for m in modules if id(m) not in found and any(id(c) in level for c in m.children())}
        found |= level
    return found


def _largest_without(upsampling: set[int], module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    for child in module.children():
        forward = inspect.getattr_static(type(child), "forward", None)
        if id(child) in seen:
            continue
        seen.add(id(child))
        if id(child) in upsampling or forward is nn.Module.__dict__["forward"]:  # a list, which is not called
            yield from _largest_without(upsampling, child, seen)
        elif is_patched(child, _MARK) or (_is_plain(child, forward) and any(True for _ in child.children())):
            yield child  # a layer alone makes too few calls


def _is_plain(module: nn.Module, forward: Any) -> bool:
    """Whether a function of the class runs as the module's forward, and Dynamo has not compiled it by itself."""
    own = module.__dict__.get("forward")  # a module that was patched when it was pickled has its class's there
    same = own is None or getattr(own, "__func__", None) is forward
    return inspect.isfunction(forward) and same and module._compiled_call_impl is None


def _without_mode(forward: Forward, bound: bool) -> Forward:
    @functools.wraps(forward)
    def quiet_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        current = type(self).forward  # the class, or its forward, may have been replaced since
        if not torch.compiler.is_compiling():
            mode = _get_current_function_mode()
            quiet = isinstance(mode, Fuse) and id(self) in mode.quiet and not mode.deferred
            if quiet and not mode.session.projections.pending and not may_be_written():
                with _pop_mode_temporarily():
                    return current(self, *args, **kwargs)
        return current(self, *args, **kwargs)

    return quiet_forward


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
