"""When modules may be fused: only where the result is the same and every hook still runs.

A fused operator runs several modules in one step, without calling them. Code that replaced one of those modules, hooked
it or parametrised it must get it called, so those cases run unfused: every module is called.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from pspnet_fast.reference import NormStatistics

logger = logging.getLogger("pspnet_fast")

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def changed_reason(name: str, module: nn.Module, expected: type[nn.Module]) -> str | None:
    """Why ``module`` must be called rather than fused, or None.

    The type is compared exactly: parametrised, sharded, quantised and wrapped modules are subclasses or other types.
    """
    if type(module) is not expected:
        return f"{name} is a {type(module).__name__}, not a {expected.__name__}"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return f"{name} has hooks"
    if "forward" in module.__dict__:
        return f"{name}.forward was replaced"
    return None


def fusable_options(criterion: object) -> dict[str, Any] | None:
    """The arguments of ``criterion`` if it is an unhooked ``nn.CrossEntropyLoss``, no subclass; else None: call it."""
    if not isinstance(criterion, nn.CrossEntropyLoss) or changed_reason("criterion", criterion, nn.CrossEntropyLoss):
        return None
    return {name: getattr(criterion, name) for name in ("weight", "ignore_index", "label_smoothing", "reduction")}


def frozen_norm(norm: nn.Module, activation: nn.Module) -> NormStatistics | None:
    """The statistics of a batch normalisation with ReLU behind it that inference may apply as a factor and a sum.

    None where the modules must be called: gradients are recorded, the batch's own statistics are used, one of the
    modules was replaced or hooked, or torch.jit.trace runs, which compares a trace with gradients with one without.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or norm.training or not isinstance(norm, _BatchNorm):
        return None
    types = nn.SyncBatchNorm if isinstance(norm, nn.SyncBatchNorm) else nn.BatchNorm2d
    if changed_reason("norm", norm, types) or changed_reason("activation", activation, nn.ReLU):
        return None
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        return None
    return NormStatistics(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def global_hook_reason() -> str | None:
    """Hooks registered for all modules (profilers, FLOP counters) expect to see every module called."""
    if any(getattr(module_hooks, f"_global{hooks}") for hooks in _HOOKS):
        return "a hook is registered for all modules"
    return None


def log_unfused(logged: set[str], reason: str) -> None:
    """Record once for each set ``logged``, at debug level, that modules run unfused, and why.

    The set belongs to the module that decides, so data-parallel replicas, which copy a module's attributes, share it.
    """
    if torch.compiler.is_compiling() or reason in logged:
        return
    logged.add(reason)
    logger.debug("not fused: %s", reason)
