"""Losses and labels of upsampled logits under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import ops
from pspnet_fast.fusion.traced_calls import last_call
from pspnet_fast.fusion.traced_maps import TracedMaps


class Largest(NamedTuple):
    """As ``torch.return_types.max``."""

    values: Tensor
    indices: Tensor


class TracedHeads(TracedMaps):
    """The rules of :class:`~pspnet_fast.fusion.traced.TracedFuse` for what stands behind the logits."""

    loss: bool
    argmax: bool

    def classified(
        self,
        func: Callable[..., Any],
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """``F.cross_entropy``, or ``F.nll_loss``, which has no ``label_smoothing``."""
        of_map = func is F.cross_entropy
        found = self.single(input, "map" if of_map else "log_softmax")
        if found is None or not self._takes(target, weight) or size_average is not None or reduce is not None:
            smoothing = (label_smoothing,) if of_map else ()
            stock: Tensor = func(input, target, weight, size_average, ignore_index, reduce, reduction, *smoothing)
            return stock
        low, geometry = found
        return fused_loss(
            low, geometry.align_corners, target, weight, ignore_index, reduction, label_smoothing, input.dtype
        )

    def _takes(self, target: Tensor, weight: Tensor | None) -> bool:
        return self.loss and takes(target, weight)

    def _softmax(self, kind: str, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        y: Tensor = func(input, *args, **keywords)
        dim = keywords.get("dim", args[0] if args else None)
        record = self.find(input)
        if record is not None and record.kind == "map" and dim in (1, -3) and y.dtype == input.dtype:
            self.remember(y, record.segments, kind, last_call(), *record.calls)
        return y

    def softmax(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return self._softmax("softmax", func, input, *args, **keywords)

    def log_softmax(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return self._softmax("log_softmax", func, input, *args, **keywords)

    def _labels(self, input: Tensor, dim: int | None) -> Tensor | None:
        found = self.single(input, "map", "softmax", "log_softmax")
        if found is None or not self.argmax or dim not in (1, -3):
            return None
        low, geometry = found
        return ops.upsample_argmax(low, geometry.full, align_corners=geometry.align_corners)

    def labels(self, func: Callable[..., Any], input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        labels = self._labels(input, dim)
        if labels is None:
            return func(input, dim, keepdim)
        return labels.unsqueeze(1) if keepdim else labels

    def largest(self, func: Callable[..., Any], input: Tensor, *args: Any, **keywords: Any) -> Any:
        stock = func(input, *args, **keywords)
        dim = keywords.get("dim", args[0] if args else None)
        labels = self._labels(input, dim) if isinstance(dim, int) else None
        if labels is None:
            return stock
        keepdim = keywords.get("keepdim", args[1] if len(args) > 1 else False)
        return Largest(stock[0], labels.unsqueeze(1) if keepdim else labels)

    def topk(
        self,
        func: Callable[..., Any],
        input: Tensor,
        k: int,
        dim: int = -1,
        largest: bool = True,
        sorted: bool = True,
    ) -> Any:
        stock = func(input, k, dim, largest, sorted)
        labels = self._labels(input, dim) if k == 1 and largest else None
        return stock if labels is None else Largest(stock[0], labels.unsqueeze(1))


def takes(target: Tensor, weight: Tensor | None) -> bool:
    """Whether the fused loss knows class indices and class weights of this kind."""
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.dim() != 3:
        return False
    return weight is None or not weight.requires_grad


def fused_loss(
    low: Tensor,
    align_corners: bool,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Tensor:
    """The cross-entropy of logits ``low``, upsampled; of ``dtype`` outside autocast."""
    loss = ops.upsample_cross_entropy(
        low,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        align_corners=align_corners,
    )
    return loss if torch.is_autocast_enabled(low.device.type) else loss.to(dtype)
