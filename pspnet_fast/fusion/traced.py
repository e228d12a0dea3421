"""The mode under ``torch.compile``: nothing is deferred, but it is remembered which tensor was upsampled from which.

Fused operators take the low-resolution maps, and what is not read any more is dead code that the compiler drops.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pspnet_fast.backend import constant_in_graphs
from pspnet_fast.fusion.traced_heads import TracedHeads
from pspnet_fast.fusion.traced_maps import Record
from pspnet_fast.fusion.writes import writes


class TracedFuse(TracedHeads, TorchFunctionMode):
    """:func:`pspnet_fast.fuse` while Dynamo traces."""

    def __init__(self, loss: bool = True, conv: bool = True, argmax: bool = True) -> None:
        super().__init__()
        self.loss, self.conv, self.argmax = loss, conv, argmax
        self.trace = _trace()
        self.records: list[Record] = []
        self.fresh = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_dynamo_compiling() or self.trace != _trace():
            # Behind a graph break: what was remembered would have to be computed, although nobody reads it.
            return func(*args, **kwargs)
        rule = "" if "out" in kwargs else _rule(func)
        before, self.fresh = self.fresh, None
        if rule == "fresh":
            self.fresh = func(*args, **kwargs)
            return self.fresh
        if rule:
            return getattr(self, rule)(func, *args, **kwargs)
        written = writes(func, args, kwargs) and (before is None or args[0] is not before or "out" in kwargs)
        if (written and not _is_counter(*args[:1])) or func is Tensor.register_hook or func is Tensor.retain_grad:
            self.records = []
        return func(*args, **kwargs)


def _is_counter(written: Any = None) -> bool:
    """Whether it is a single integer, as BatchNorm counts its batches in: no map shares its memory."""
    return isinstance(written, Tensor) and written.dim() == 0 and not written.is_floating_point()


_RULES: dict[Any, str] = {
    **dict.fromkeys((F.batch_norm, F.layer_norm, F.group_norm, F.linear, torch.mul, Tensor.mul), "fresh"),
    F.interpolate: "interpolate",
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), "cat"),
    torch.conv2d: "conv2d",
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, operator.add), "add"),
    **dict.fromkeys((Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to), "cast"),
    **dict.fromkeys((F.cross_entropy, F.nll_loss), "classified"),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), "softmax"),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), "log_softmax"),
    **dict.fromkeys((torch.argmax, Tensor.argmax), "labels"),
    **dict.fromkeys((torch.max, Tensor.max), "largest"),
    **dict.fromkeys((torch.topk, Tensor.topk), "topk"),
}


_TRACES = itertools.count()


@constant_in_graphs
def _trace() -> int:
    """A number of the code that is being traced as one; -1 outside of it."""
    context = torch._guards.TracingContext.try_get()
    number: int = -1 if context is None else context.__dict__.setdefault("pspnet_fast_trace", next(_TRACES))
    return number


@constant_in_graphs
def _rule(func: Callable[..., Any]) -> str:
    return _RULES.get(func, "")
