"""The front door for models: ``accelerate`` and ``restore`` one, ``explain`` what is done to it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from pspnet_fast.fusion.fused import supported
from pspnet_fast.fusion.mode import Fuse, fuse
from pspnet_fast.fusion.report import FusionReport
from pspnet_fast.ops.operator import exporting

Model = TypeVar("Model", bound=nn.Module)


def _fused_forward(forward: Callable[..., Any], bound: bool) -> Callable[..., Any]:
    """``forward`` inside ``fuse()``: a plain function, as ``inspect.signature`` and ``torch.export`` read it."""

    @functools.wraps(forward)
    def fused_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(forward, self) if bound else forward
        report: FusionReport = self.fusion_report  # type: ignore[assignment]
        if torch.compiler.is_compiling():
            if exporting():
                return call(*args, **kwargs)
            with fuse(**report.options):
                return call(*args, **kwargs)
        if not supported():
            return call(*args, **kwargs)
        with Fuse(**report.options, report=report, root=self):
            return call(*args, **kwargs)

    fused_forward.__dict__["_fuses"] = True
    return fused_forward


def is_accelerated(model: nn.Module) -> bool:
    return hasattr(getattr(model.__dict__.get("forward"), "__func__", None), "_fuses")


def accelerate(model: Model, *, loss: bool = True, conv: bool = True, argmax: bool = True) -> Model:
    """Run this model's forward inside :func:`fuse`; its outputs stay deferred, so that a loss after it is fused too.

    No module, parameter, key of the state or class is changed: the instance gets a ``forward`` of its own, and a method
    ``fusion_report()``. A copy is accelerated as well; a pickled model comes back as its class made it.

    Args:
        model: any module that upsamples bilinearly.
        loss: fuse cross-entropies.
        conv: fuse convolutions over (concatenations of) upsampled maps.
        argmax: fuse arg-max over classes.

    Returns:
        ``model`` itself.
    """
    restore(model)
    own = model.__dict__.get("forward")
    bound = own is None or getattr(own, "__self__", None) is model
    function = _fused_forward(getattr(model.forward, "__func__", model.forward), bound)
    function.__dict__["_original"] = own
    model.__dict__["forward"] = types.MethodType(function, model)
    model.__dict__["fusion_report"] = FusionReport({"loss": loss, "conv": conv, "argmax": argmax})
    model.__dict__["_replicate_for_data_parallel"] = types.MethodType(_replicate, model)
    return model


@functools.wraps(nn.Module._replicate_for_data_parallel)
def _replicate(self: nn.Module) -> nn.Module:
    """``torch.nn.DataParallel`` copies attributes: the copy's forward must be bound to the copy."""
    replica: nn.Module = type(self)._replicate_for_data_parallel(self)
    for name in ("forward", "_replicate_for_data_parallel"):
        replica.__dict__[name] = types.MethodType(self.__dict__[name].__func__, replica)
    return replica


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`; returns ``model``."""
    if is_accelerated(model):
        original = model.__dict__.pop("forward").__func__.__dict__["_original"]
        if original is not None:
            model.__dict__["forward"] = original
        for name in ("fusion_report", "_replicate_for_data_parallel"):
            model.__dict__.pop(name, None)
    return model


def explain(model: nn.Module, *inputs: Any, **keywords: Any) -> FusionReport:
    """Run ``model(*inputs, **keywords)`` once, accelerated, and return what was fused and what was not, and why.

    Deferred outputs are not read. Without gradients and in the mode that the model is in; its buffers (the running
    statistics of a normalisation in training) change as in any call.
    """
    report = FusionReport()
    with torch.no_grad():
        if not is_accelerated(model):
            with Fuse(report=report, root=model):
                model(*inputs, **keywords)
            return report
        own: FusionReport = model.fusion_report  # type: ignore[assignment]
        report.options = own.options
        model.__dict__["fusion_report"] = report
        try:
            model(*inputs, **keywords)
        finally:
            model.__dict__["fusion_report"] = own
    return report
