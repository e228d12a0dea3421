"""When modules may be fused: only where the result is the same and every hook still runs.

A fused operator runs several modules in one step, without calling them. Code that replaced one of those modules, hooked
it or parametrised it must get it called, so those cases run unfused: every module is called.
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

logger = logging.getLogger("pspnet_fast")

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


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


def global_hook_reason() -> str | None:
    """Hooks registered for all modules (profilers, FLOP counters) expect to see every module called."""
    if any(getattr(module_hooks, hooks) for hooks in _GLOBAL_HOOKS):
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
