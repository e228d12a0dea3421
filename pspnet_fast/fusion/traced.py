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
from pspnet_fast.fusion.conv_plans import conv_plan, refusal
from pspnet_fast.fusion.segments import Geometry, Segment, pair
from pspnet_fast.fusion.traced_heads import Record, TracedHeads
from pspnet_fast.fusion.writes import writes


class TracedFuse(TracedHeads, TorchFunctionMode):
    """:func:`pspnet_fast.fuse` while Dynamo traces."""

    def __init__(self, loss: bool = True, conv: bool = True, argmax: bool = True) -> None:
        super().__init__()
        self.loss, self.conv, self.argmax = loss, conv, argmax
        self.trace = _trace()
        self.records: list[Record] = []
        self.fresh: Any = None  # the result of the last call, where it is new memory without another reference

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_dynamo_compiling() or self.trace != _trace():
            # Behind a graph break: what was remembered would have to be computed, although nobody reads it.
            return func(*args, **kwargs)
        rule = _rule(func)
        before, self.fresh = self.fresh, None
        if rule == "fresh":
            self.fresh = func(*args, **kwargs)
            return self.fresh
        if rule:
            return getattr(self, rule)(func, *args, **kwargs)
        written = writes(func, args, kwargs) and (before is None or args[0] is not before or "out" in kwargs)
        if written or func is Tensor.register_hook or func is Tensor.retain_grad:
            self.records = []
        return func(*args, **kwargs)

    def interpolate(
        self,
        func: Callable[..., Any],
        input: Tensor,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> Tensor:
        y: Tensor = func(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        if mode != "bilinear" or antialias or not input.is_floating_point():
            return y
        geometry = traced_geometry(input.shape, y.shape, scale_factor, align_corners, recompute_scale_factor)
        if geometry is None:
            return y
        segments, kind = [Segment(input, geometry, True)], "map"
        if geometry.low == geometry.full:
            if y.dtype == input.dtype:
                y = input.clone()  # Inductor would interpolate, and add up the gradient element by element
            known = self.find(input)
            if known is None:
                return y
            segments, kind = known.segments, known.kind
        self.records.append(Record(y, segments, kind))
        return y

    def cat(self, func: Callable[..., Any], tensors: Any, dim: int = 0, **keywords: Any) -> Tensor:
        y: Tensor = func(tensors, dim, **keywords)
        if dim in (1, -3) and y.dim() == 4 and self.conv and not keywords:
            segments: list[Segment] = []
            for x in tensors:
                record = self.find(x)
                known = record is not None and record.kind == "map"
                segments += record.segments if record is not None and known else [Segment(x, None, True)]
            if any(s.geometry is not None for s in segments):
                self.records.append(Record(y, segments, "map"))
        return y

    def conv2d(
        self,
        func: Callable[..., Any],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        record = self.find(input)
        y: Tensor
        if record is not None and record.kind == "map" and self.conv and weight.shape[1] == input.shape[1]:
            plan = None
            if refusal(weight, stride, padding, dilation, groups) is None:
                plan = conv_plan(record.segments, weight, lazy=False)
            if plan is not None:
                y = self.fresh = plan.fused([s.tensor for s in record.segments], [weight, bias])
                return y
        y = self.fresh = func(input, weight, bias, stride, padding, dilation, groups)
        return y

    def add(self, func: Callable[..., Any], input: Any, other: Any, *args: Any, **keywords: Any) -> Any:
        y = func(input, other, *args, **keywords)
        first, second = self.find(input), self.find(other)
        if first is None or second is None or args or keywords or input.dtype != other.dtype:
            return y
        if first.kind != "map" or second.kind != "map" or len(first.segments) != len(second.segments):
            return y
        segments = []
        for s, t in zip(first.segments, second.segments, strict=True):
            if s.geometry is None or s.geometry != t.geometry or s.channels != t.channels:
                return y
            segments.append(Segment(s.tensor + t.tensor, s.geometry, True))
        self.records.append(Record(y, segments, "map"))
        return y

    def cast(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Any:
        y = func(input, *args, **keywords)
        record = self.find(input)
        if record is None or record.kind != "map" or not y.is_floating_point() or y.device != input.device:
            return y
        if y is not input and all(s.geometry is not None for s in record.segments):
            segments = [Segment(s.tensor.to(y.dtype), s.geometry, True) for s in record.segments]
            self.records.append(Record(y, segments, "map"))
        return y


def traced_geometry(
    low: torch.Size, full: torch.Size, scale_factor: Any, align_corners: bool | None, recompute: bool | None
) -> Geometry | None:
    """The geometry of a bilinear ``F.interpolate`` from shape ``low`` to ``full``, of at least its size.

    None where PyTorch uses a scale factor that is not the ratio of the sizes.
    """
    factors = pair(scale_factor) or (1.0, 1.0)
    # Unless corners are aligned, PyTorch uses the factor itself: the same where it gives whole sizes.
    scaled = scale_factor is not None and not align_corners
    if scaled and (recompute or full[2:] != (low[2] * factors[0], low[3] * factors[1])):
        return None
    if full[2] < low[2] or full[3] < low[3]:
        return None
    return Geometry((low[2], low[3]), (full[2], full[3]), bool(align_corners))


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
