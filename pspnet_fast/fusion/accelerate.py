"""The front door for models: ``accelerate`` and ``restore`` one, ``explain`` what is done to it."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
from torch import nn

from pspnet_fast.fusion.fused import supported
from pspnet_fast.fusion.mode import Fuse, fuse
from pspnet_fast.fusion.quiet import Forward, QuietModules, is_patched, patch, restore_quiet, unpatch
from pspnet_fast.fusion.report import FusionReport
from pspnet_fast.ops.operator import exporting

Model = TypeVar("Model", bound=nn.Module)
_MARK = "fused"


def _fused_forward(forward: Forward, bound: bool) -> Forward:
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
        quiet: QuietModules = self._quiet_modules  # type: ignore[assignment]
        with Fuse(**report.options, report=report, root=self) as mode:
            return quiet.run(mode, self, call, args, kwargs)

    return fused_forward


def is_accelerated(model: nn.Module) -> bool:
    return is_patched(model, _MARK)


def accelerate(model: Model, *, loss: bool = True, conv: bool = True, argmax: bool = True) -> Model:
    """Run this model's forward inside :func:`fuse`; its outputs stay deferred, so that a loss after it is fused too.

    No parameter, key of the state or class is changed: the instance gets a ``forward`` of its own and a method
    ``fusion_report()``, and the largest modules that upsample nothing get a ``forward`` that runs without the mode. A
    copy is accelerated as well; a pickled model comes back as its class made it.

    Args:
        model: any module that upsamples bilinearly.
        loss: fuse cross-entropies.
        conv: fuse convolutions over (concatenations of) upsampled maps.
        argmax: fuse arg-max over classes.

    Returns:
        ``model`` itself.
    """
    restore(model)
    patch(model, _MARK, _fused_forward)
    model.__dict__["fusion_report"] = FusionReport({"loss": loss, "conv": conv, "argmax": argmax})
    model.__dict__["_quiet_modules"] = QuietModules()
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`; returns ``model``."""
    if is_accelerated(model):
        unpatch(model)
        restore_quiet(model)
        for name in ("fusion_report", "_quiet_modules"):
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
        quiet = model.__dict__["_quiet_modules"]
        model.__dict__.update(fusion_report=report, _quiet_modules=QuietModules())  # every module is looked at
        try:
            model(*inputs, **keywords)
        finally:
            model.__dict__.update(fusion_report=own, _quiet_modules=quiet)
    return report
