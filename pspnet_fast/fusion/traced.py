"""The mode under ``torch.compile``: nothing is deferred, but it is remembered which tensor was upsampled from which.

Fused operators take the low-resolution maps, and what is not read any more is dead code that the compiler drops.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pspnet_fast.backend import constant_in_graphs
from pspnet_fast.fusion.traced_calls import trace
from pspnet_fast.fusion.traced_heads import TracedHeads
from pspnet_fast.fusion.traced_maps import Record


class TracedFuse(TracedHeads, TorchFunctionMode):
    """:func:`pspnet_fast.fuse` while Dynamo traces."""

    def __init__(self, loss: bool = True, conv: bool = True, argmax: bool = True) -> None:
        super().__init__()
        self.loss, self.conv, self.argmax = loss, conv, argmax
        self.trace = trace()
        self.records: list[Record] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Behind a graph break what was remembered would have to be computed, although nobody reads it.
        traced = torch.compiler.is_dynamo_compiling() and -1 != self.trace == trace()
        rule = _rule(func) if traced and "out" not in kwargs else ""
        return getattr(self, rule)(func, *args, **kwargs) if rule else func(*args, **kwargs)


_RULES: dict[Any, str] = {
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


@constant_in_graphs
def _rule(func: Callable[..., Any]) -> str:
    return _RULES.get(func, "")
