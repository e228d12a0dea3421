"""The mode under ``torch.compile``: nothing is deferred, but it is remembered which tensor was upsampled from which.

Fused operators take the low-resolution maps, and what nobody reads any more is dead code that the compiler drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pspnet_fast import ops
from pspnet_fast.fusion.conv_plans import conv_plan, refusal
from pspnet_fast.fusion.segments import Geometry, Segment, pair
from pspnet_fast.fusion.writes import writes


class Record(NamedTuple):
    """A map, what it consists of, and "map" or "log_softmax"."""

    tensor: Tensor
    segments: list[Segment]
    kind: str


class TracedFuse(TorchFunctionMode):
    """:func:`pspnet_fast.fuse` while Dynamo traces."""

    def __init__(self, loss: bool = True, conv: bool = True, argmax: bool = True) -> None:
        super().__init__()
        self.loss, self.conv, self.argmax = loss, conv, argmax
        self.records: list[Record] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate:
            return self.interpolate(*args, **kwargs)
        if func is F.cross_entropy:
            return self.cross_entropy(*args, **kwargs)
        if func is torch.cat:
            return self.cat(*args, **kwargs)
        if func is torch.conv2d:
            return self.conv2d(*args, **kwargs)
        if func is torch.argmax or func is Tensor.argmax:
            return self.labels(func, *args, **kwargs)
        if self.records and (func is Tensor.register_hook or func is Tensor.retain_grad or writes(func, args, kwargs)):
            self.records = []
        return func(*args, **kwargs)

    def find(self, x: Any) -> Record | None:
        for record in self.records:
            if record.tensor is x:
                return record
        return None

    def single(self, x: Any, kind: str = "map") -> Segment | None:
        record = self.find(x)
        if record is None or record.kind != kind or len(record.segments) != 1:
            return None
        return record.segments[0]

    def interpolate(
        self,
        input: Tensor,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> Tensor:
        y = F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        if mode != "bilinear" or antialias or not input.is_floating_point():
            return y
        low, full = tuple(input.shape[2:]), tuple(y.shape[2:])
        known = self.find(input)
        if known is not None and low == full and not recompute_scale_factor:
            self.records.append(Record(y, known.segments, known.kind))
            return y
        factors = pair(scale_factor) or (1.0, 1.0)
        scaled = scale_factor is not None and not align_corners
        # PyTorch uses the factor itself then: the same where it gives whole sizes.
        if scaled and (recompute_scale_factor or full != (low[0] * factors[0], low[1] * factors[1])):
            return y
        if full[0] >= low[0] and full[1] >= low[1] and full != low:
            geometry = Geometry(low, full, bool(align_corners))  # type: ignore[arg-type]
            self.records.append(Record(y, [Segment(input, geometry, True)], "map"))
        return y

    def cross_entropy(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        segment = self.single(input)
        plain = size_average is None and reduce is None and (weight is None or not weight.requires_grad)
        if segment is None or segment.geometry is None or not self.loss or not plain or target.dtype != torch.int64:
            options = weight, size_average, ignore_index, reduce, reduction, label_smoothing
            return F.cross_entropy(input, target, *options)
        loss = ops.upsample_cross_entropy(
            segment.tensor,
            target,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            align_corners=segment.geometry.align_corners,
        )
        return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)

    def cat(self, tensors: Any, dim: int = 0, **keywords: Any) -> Tensor:
        y = torch.cat(tensors, dim, **keywords)
        if dim in (1, -3) and y.dim() == 4 and self.conv and not keywords:
            segments: list[Segment] = []
            for x in tensors:
                record = self.find(x)
                segments += [Segment(x, None, True)] if record is None else record.segments
            if any(s.geometry is not None for s in segments):
                self.records.append(Record(y, segments, "map"))
        return y

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        record = self.find(input)
        if record is not None and self.conv and weight.shape[1] == input.shape[1]:
            plan = None
            if refusal(weight, stride, padding, dilation, groups) is None:
                plan = conv_plan(record.segments, weight, lazy=False)
            if plan is not None:
                y: Tensor = plan.fused([s.tensor for s in record.segments], [weight, bias])
                return y
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def labels(self, func: Callable[..., Any], input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        segment = self.single(input)
        if segment is None or segment.geometry is None or not self.argmax or dim not in (1, -3):
            return func(input, dim, keepdim)
        labels = ops.upsample_argmax(
            segment.tensor, segment.geometry.full, align_corners=segment.geometry.align_corners
        )
        return labels.unsqueeze(1) if keepdim else labels
