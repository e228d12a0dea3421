"""Upsampled maps and convolutions of them under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pspnet_fast.fusion.conv_plans import conv_plan, refusal
from pspnet_fast.fusion.segments import Geometry, Segment, pair
from pspnet_fast.fusion.traced_calls import last_call, stand
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


class TracedMaps:
    """The rules of :class:`~pspnet_fast.fusion.traced.TracedFuse` for what stands before the logits."""

    conv: bool
    records: list[Record]

    def find(self, x: Any) -> Record | None:
        """What is known of ``x``; nothing where something wrote to it, or its reader is recorded otherwise than it."""
        for record in self.records:
            if record.tensor is x:
                return record if record.recording == torch.is_grad_enabled() and stand(*record.calls) else None
        return None

    def remember(self, tensor: Tensor, segments: list[Segment], kind: str, *calls: int) -> None:
        self.records.append(Record(tensor, segments, kind, torch.is_grad_enabled(), calls))

    def single(self, x: Any, *kinds: str) -> tuple[Tensor, Geometry] | None:
        """The low-resolution map, and its geometry, if ``x`` is one of these ``kinds`` of its upsampling."""
        record = self.find(x)
        if record is None or record.kind not in kinds or len(record.segments) != 1:
            return None
        segment = record.segments[0]
        return None if segment.geometry is None else (segment.tensor, segment.geometry)

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
        segments, kind, calls = [Segment(input, geometry, True)], "map", [last_call()]
        if geometry.low == geometry.full:
            if y.dtype == input.dtype:
                y = input.clone()  # Inductor would interpolate, and add up the gradient element by element
            known = self.find(input)
            if known is None:
                return y
            segments, kind, calls = known.segments, known.kind, [*known.calls, last_call()]
        self.remember(y, segments, kind, *calls)
        return y

    def cat(self, func: Callable[..., Any], tensors: Any, dim: int = 0, **keywords: Any) -> Tensor:
        y: Tensor = func(tensors, dim, **keywords)
        if dim in (1, -3) and y.dim() == 4 and self.conv and not keywords:
            segments: list[Segment] = []
            calls = [last_call()]
            for x in tensors:
                record = self.find(x)
                known = record is not None and record.kind == "map"
                segments += record.segments if record is not None and known else [Segment(x, None, True)]
                calls += record.calls if record is not None and known else ()
            if any(s.geometry is not None for s in segments):
                self.remember(y, segments, "map", *calls)
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
                channels_last = suggests_channels_last(input) or suggests_channels_last(weight)  # as conv2d answers
                y = plan.fused([s.tensor for s in record.segments], [weight, bias])
                return y.contiguous(memory_format=format_of(channels_last))
        y = func(input, weight, bias, stride, padding, dilation, groups)
        return y

    def add(self, func: Callable[..., Any], input: Any, other: Any, *args: Any, **keywords: Any) -> Any:
        y = func(input, other, *args, **keywords)
        call = last_call()
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
        self.remember(y, segments, "map", call, *first.calls, *second.calls)
        return y

    def cast(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Any:
        y = func(input, *args, **keywords)
        call = last_call()
        record = self.find(input)
        if record is None or record.kind != "map" or not y.is_floating_point() or y.device != input.device:
            return y
        if y is not input and all(s.geometry is not None for s in record.segments):
            segments = [Segment(s.tensor.to(y.dtype), s.geometry, True) for s in record.segments]
            self.remember(y, segments, "map", call, *record.calls)
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
