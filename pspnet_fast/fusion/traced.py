"""The mode under ``torch.compile``: nothing is deferred, but it is remembered which tensor was upsampled from which.

Fused operators take the low-resolution maps, and what is not read any more is dead code that the compiler drops.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pspnet_fast import ops
from pspnet_fast.backend import constant_in_graphs
from pspnet_fast.fusion.convolution import conv_plan, refusal
from pspnet_fast.fusion.graph_nodes import last_call, stand, trace
from pspnet_fast.fusion.logits import Criterion, fused_loss, takes
from pspnet_fast.fusion.segments import Geometry, Resize, Segment, enlargement
from pspnet_fast.layout import format_of, suggests_channels_last


class Record(NamedTuple):
    """A map, what it consists of, and "map", or "softmax" and "log_softmax" of the map that the segments describe.

    ``recording``: whether gradients were recorded when it was made. ``calls``: the numbers of the calls that made it.
    """

    tensor: Tensor
    segments: list[Segment]
    kind: str
    recording: bool
    calls: tuple[int, ...]


class Largest(NamedTuple):
    """As ``torch.return_types.max``."""

    values: Tensor
    indices: Tensor


class TracedFuse(TorchFunctionMode):
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

    def find(self, x: Any) -> Record | None:
        """What is known of ``x``; nothing where something wrote to it, or its reader is recorded otherwise than it."""
        for record in self.records:
            if record.tensor is x:
                return record if record.recording == torch.is_grad_enabled() and stand(*record.calls) else None
        return None

    def find_map(self, x: Any) -> Record | None:
        record = self.find(x)
        return record if record is not None and record.kind == "map" else None

    def find_single(self, x: Any, *kinds: str) -> tuple[Tensor, Geometry] | None:
        """The low-resolution map, and its geometry, if ``x`` is one of these ``kinds`` of its upsampling."""
        record = self.find(x)
        if record is None or record.kind not in kinds or len(record.segments) != 1:
            return None
        segment = record.segments[0]
        return None if segment.geometry is None else (segment.tensor, segment.geometry)

    def remember(self, tensor: Tensor, segments: list[Segment], kind: str, *calls: int) -> None:
        self.records.append(Record(tensor, segments, kind, torch.is_grad_enabled(), calls))

    def interpolate(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        y: Tensor = func(input, *args, **keywords)
        calls = [last_call()]  # before sizes are asked for, which may be calls as well
        geometry = enlargement(input.shape, y.shape, Resize(*args, **keywords))
        if geometry is None or not input.is_floating_point():
            return y
        segments, kind = [Segment(input, geometry, True)], "map"
        if geometry.low == geometry.full:
            if y.dtype == input.dtype:
                y = input.clone()  # Inductor would interpolate, and add up the gradient element by element
                calls = [last_call()]
            known = self.find(input)
            if known is None:
                return y
            segments, kind, calls = known.segments, known.kind, [*known.calls, *calls]
        self.remember(y, segments, kind, *calls)
        return y

    def cat(self, func: Callable[..., Any], tensors: Any, dim: int = 0, **keywords: Any) -> Tensor:
        y: Tensor = func(tensors, dim, **keywords)
        if dim in (1, -3) and y.dim() == 4 and self.conv and not keywords:
            segments: list[Segment] = []
            calls = [last_call()]
            for x in tensors:
                record = self.find_map(x)
                segments += [Segment(x, None, True)] if record is None else record.segments
                calls += () if record is None else record.calls
            if any(s.geometry is not None for s in segments):
                self.remember(y, segments, "map", *calls)
        return y

    def conv2d(
        self, func: Callable[..., Any], input: Tensor, weight: Tensor, bias: Any = None, *options: Any, **keywords: Any
    ) -> Tensor:
        record, plan = self.find_map(input) if self.conv else None, None
        known = record is not None and weight.shape[1] == input.shape[1]
        if record is not None and known and refusal(weight, *options, **keywords) is None:
            plan = conv_plan(record.segments, weight, lazy=False)
        if record is None or plan is None:
            stock: Tensor = func(input, weight, bias, *options, **keywords)
            return stock
        channels_last = suggests_channels_last(input) or suggests_channels_last(weight)  # as conv2d answers
        y = plan.fused([s.tensor for s in record.segments], [weight, bias])
        return y.contiguous(memory_format=format_of(channels_last))

    def add(self, func: Callable[..., Any], input: Any, other: Any, *args: Any, **keywords: Any) -> Any:
        y = func(input, other, *args, **keywords)
        call = last_call()
        first, second = self.find_map(input), self.find_map(other)
        if first is None or second is None or args or keywords or input.dtype != other.dtype:
            return y
        if len(first.segments) != len(second.segments):
            return y
        segments = []
        for s, t in zip(first.segments, second.segments, strict=True):
            if s.geometry is None or s.geometry != t.geometry or s.channels != t.channels:
                return y
            segments.append(Segment(s.tensor + t.tensor, s.geometry, True))
        self.remember(y, segments, "map", call, *first.calls, *second.calls)
        return y

    def cast(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Any:
        y = func(input, *args, **keywords)
        call = last_call()
        record = self.find_map(input)
        if record is None or not y.is_floating_point() or y.device != input.device:
            return y
        if y is not input and all(s.geometry is not None for s in record.segments):
            segments = [Segment(s.tensor.to(y.dtype), s.geometry, True) for s in record.segments]
            self.remember(y, segments, "map", call, *record.calls)
        return y

    def classified(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        criterion = Criterion(*args, **keywords)
        found = self.find_single(input, "map" if func is F.cross_entropy else "log_softmax")
        if found is None or not self.loss or not takes(criterion):
            stock: Tensor = func(input, *args, **keywords)
            return stock
        low, geometry = found
        return fused_loss(low, geometry.align_corners, input.dtype, *criterion)

    def softmax(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        y: Tensor = func(input, *args, **keywords)
        call = last_call()
        dim = keywords.get("dim", args[0] if args else None)
        record = self.find_map(input)
        if record is not None and dim in (1, -3) and y.dtype == input.dtype:
            kind = "log_softmax" if func in _LOG_SOFTMAX else "softmax"
            self.remember(y, record.segments, kind, call, *record.calls)
        return y

    def _labels(self, input: Tensor, dim: Any = None, keepdim: bool = False, **others: Any) -> Tensor | None:
        found = self.find_single(input, "map", "softmax", "log_softmax")
        if found is None or not self.argmax or others or not isinstance(dim, int) or dim not in (1, -3):
            return None
        low, geometry = found
        labels = ops.upsample_argmax(low, geometry.full, align_corners=geometry.align_corners)
        return labels.unsqueeze(1) if keepdim else labels

    def labels(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Any:
        labels = self._labels(input, *args, **keywords)
        return func(input, *args, **keywords) if labels is None else labels

    def largest(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Any:
        stock = func(input, *args, **keywords)
        labels = self._labels(input, *args, **keywords)
        return stock if labels is None else Largest(stock[0], labels)

    def topk(self, func: Callable[..., Any], input: Tensor, k: int, dim: int = -1, *args: Any, **keywords: Any) -> Any:
        stock = func(input, k, dim, *args, **keywords)
        largest = keywords.get("largest", args[0] if args else True)
        labels = self._labels(input, dim, keepdim=True) if k == 1 and largest else None
        return stock if labels is None else Largest(stock[0], labels)


_LOG_SOFTMAX = (F.log_softmax, torch.log_softmax, Tensor.log_softmax)
_RULES: dict[Any, str] = {
    F.interpolate: "interpolate",
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), "cat"),
    torch.conv2d: "conv2d",
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, operator.add), "add"),
    **dict.fromkeys((Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to), "cast"),
    **dict.fromkeys((F.cross_entropy, F.nll_loss), "classified"),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax, *_LOG_SOFTMAX), "softmax"),
    **dict.fromkeys((torch.argmax, Tensor.argmax), "labels"),
    **dict.fromkeys((torch.max, Tensor.max), "largest"),
    **dict.fromkeys((torch.topk, Tensor.topk), "topk"),
}


@constant_in_graphs
def _rule(func: Callable[..., Any]) -> str:
    return _RULES.get(func, "")
