"""Cross-entropy of an upsampled map: ``F.cross_entropy``, and ``F.nll_loss`` of ``F.log_softmax``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import ops
from pspnet_fast.fusion.deferred import RULES, Deferred
from pspnet_fast.fusion.fused import Plan, run, supported
from pspnet_fast.fusion.segments import Geometry

# What each function is called on: the map, or what was made of it.
KINDS = {F.cross_entropy: "map", F.nll_loss: "log_softmax"}


def _loss(
    func: Any,
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Of both functions, whose arguments are the same but for ``label_smoothing``, which ``F.nll_loss`` lacks."""
    x, kind = input, KINDS[func]
    if size_average is not None or reduce is not None or (label_smoothing and kind != "map"):
        return NotImplemented
    reason = _reason(kind, x, target, weight, ignore_index, reduction, label_smoothing)
    if reason is not None:
        if isinstance(x, Deferred):
            x.cell.session.refused(func.__name__, reason)
        return NotImplemented
    geometry: Geometry = x.cell.segments[0].geometry
    dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64 else x.dtype
    smoothing = {"label_smoothing": label_smoothing} if kind == "map" else {}

    def fused(lows: list[Tensor], others: list[Tensor | None]) -> Tensor:
        loss = ops.upsample_cross_entropy(
            lows[0],
            target,
            weight=others[0],
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            align_corners=geometry.align_corners,
        )
        return loss.to(dtype)

    def stock(full: Tensor, others: list[Tensor | None]) -> Tensor:
        options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction, **smoothing}
        loss: Tensor = func(full, target, others[0], **options)
        return loss

    # The stock operator allocates the map, unless it exists, and its log-softmax.
    size = x.numel() * x.element_size()
    saved = size * ((x.cell.value is None) + 1)
    x.cell.session.fused(func.__name__, "upsample_cross_entropy", saved)
    return run(Plan(fused, stock), x, weight)


def _reason(
    kind: str,
    x: Any,
    target: Any,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> str | None:
    """Why the stock operator has to run, or None."""
    if not isinstance(x, Deferred) or not isinstance(target, Tensor) or isinstance(target, Deferred):
        return "the target is not a plain label map"
    cell = x.cell
    if cell.session is None or not cell.session.loss or not supported():
        return "switched off here"
    if cell.adjoint or cell.kind != kind or not cell.fusable or len(cell.segments) != 1:
        return "the map was changed, or is made of several"
    segment = cell.segments[0]
    if segment.geometry is None or target.dtype != torch.int64 or target.shape != (x.shape[0], *x.shape[2:]):
        return f"the target is {target.dtype} of shape {tuple(target.shape)}, not int64 class indices of the map's size"
    if target.device != x.device or target.numel() == 0 or reduction not in ("none", "sum", "mean"):
        return "the stock operator's own check"
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or not 0 <= label_smoothing <= 1:
        return "the stock operator's own check"
    if weight is not None:
        autocast = torch.is_autocast_enabled(x.device.type)
        if type(weight) not in (Tensor, torch.nn.Parameter) or weight.requires_grad:
            return "the class weights require a gradient, or are no plain tensor"
        if weight.shape != x.shape[1:2] or weight.device != x.device or (weight.dtype != x.dtype and not autocast):
            return "the stock operator's own check"
    return None


RULES.update(dict.fromkeys(KINDS, _loss))
