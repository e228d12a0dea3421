"""What reads upsampled logits: cross-entropies, and the arg-max over classes of the map or of its softmax."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import ops
from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.deferred import RULES, Deferred, form_of, wrap
from pspnet_fast.fusion.fused import run, supported
from pspnet_fast.fusion.structure import aten, structure

# What each loss is called on: the map, or what was made of it.
KINDS = {F.cross_entropy: "map", F.nll_loss: "log_softmax"}


class Criterion(NamedTuple):
    """The arguments of ``F.cross_entropy`` behind its input, and of ``F.nll_loss``, which has not the last."""

    target: Any
    weight: Tensor | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: str = "mean"
    label_smoothing: float = 0.0


def takes(criterion: Criterion) -> bool:
    """Whether the fused loss knows this reduction, and class indices and class weights of this kind."""
    target, weight = criterion.target, criterion.weight
    if criterion.size_average is not None or criterion.reduce is not None:
        return False
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.dim() != 3:
        return False
    return weight is None or not weight.requires_grad


def fused_loss(low: Tensor, align_corners: bool, dtype: torch.dtype, *criterion: Any) -> Tensor:
    """The cross-entropy of logits ``low``, upsampled; of ``dtype`` outside autocast, and never below float32 inside."""
    c = Criterion(*criterion)
    loss = ops.upsample_cross_entropy(
        low,
        c.target,
        weight=c.weight,
        ignore_index=c.ignore_index,
        label_smoothing=c.label_smoothing,
        reduction=c.reduction,
        align_corners=align_corners,
    )
    return loss if torch.is_autocast_enabled(low.device.type) else loss.to(dtype)


def _loss(func: Any, input: Any, *args: Any, **keywords: Any) -> Any:
    x, criterion, kind = input, Criterion(*args, **keywords), KINDS[func]
    if criterion.size_average is not None or criterion.reduce is not None:
        return NotImplemented
    if criterion.label_smoothing and kind != "map":
        return NotImplemented
    reason = _reason(kind, x, criterion)
    if reason is not None:
        if isinstance(x, Deferred):
            x.cell.session.refused(func.__name__, reason)
        return NotImplemented
    geometry, dtype = x.cell.segments[0].geometry, x.dtype

    def fused(lows: list[Tensor], others: list[Tensor | None]) -> Tensor:
        return fused_loss(lows[0], geometry.align_corners, dtype, *criterion._replace(weight=others[0]))

    def stock(full: Tensor, others: list[Tensor | None]) -> Tensor:
        arguments = criterion._replace(weight=others[0])
        loss: Tensor = func(full, *(arguments if kind == "map" else arguments[:-1]))
        return loss

    # The stock operator allocates the map, unless it exists, and its log-softmax.
    size = x.numel() * x.element_size()
    saved = size * ((x.cell.value is None) + 1)
    x.cell.session.fused(func.__name__, "upsample_cross_entropy", saved)
    return run(fused, stock, x, criterion.weight)


def _reason(kind: str, x: Any, criterion: Criterion) -> str | None:
    """Why the stock operator has to run, or None."""
    target, weight, ignore_index = criterion.target, criterion.weight, criterion.ignore_index
    if not isinstance(x, Deferred) or not isinstance(target, Tensor) or isinstance(target, Deferred):
        return "the target is not a plain label map"
    cell = x.cell
    if not cell.session.loss or not supported():
        return "switched off here"
    if cell.adjoint or cell.kind != kind or not cell.fusable or len(cell.segments) != 1:
        return "the map was changed, or is made of several"
    if cell.segments[0].geometry is None or target.dtype != torch.int64 or target.shape != (x.shape[0], *x.shape[2:]):
        return f"the target is {target.dtype} of shape {tuple(target.shape)}, not int64 class indices of the map's size"
    if target.device != x.device or target.numel() == 0 or criterion.reduction not in ("none", "sum", "mean"):
        return "the stock operator's own check"
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or not 0 <= criterion.label_smoothing <= 1:
        return "the stock operator's own check"
    if weight is not None:
        autocast = torch.is_autocast_enabled(x.device.type)
        if type(weight) not in (Tensor, torch.nn.Parameter) or weight.requires_grad:
            return "the class weights require a gradient, or are no plain tensor"
        if weight.shape != x.shape[1:2] or weight.device != x.device or (weight.dtype != x.dtype and not autocast):
            return "the stock operator's own check"
    return None


RULES.update(dict.fromkeys(KINDS, _loss))


def _labels(x: Deferred, dim: int | None, keepdim: bool, operator: str) -> Tensor | None:
    """int64 labels ``[B, H, W]``, with ``keepdim`` ``[B, 1, H, W]``, or None where the stock operator has to run."""
    cell = x.cell
    if dim not in (1, -3) or x.dim() != 4 or cell.adjoint or not cell.session.argmax:
        return None
    if not cell.fusable or len(cell.segments) != 1 or x.numel() == 0:
        return None
    low, geometry = cell.segments[0].tensor, cell.segments[0].geometry
    if geometry is None:
        return None
    saved = x.numel() * x.element_size() * ((cell.value is None) + (cell.kind != "map"))
    cell.session.fused(operator, "upsample_argmax", saved)
    labels = ops.upsample_argmax(low, geometry.full, align_corners=geometry.align_corners)
    return labels.unsqueeze(1) if keepdim else labels


def _with_values(x: Deferred, labels: Tensor | None) -> Any:
    """The largest values and their ``labels``; few readers look at the values."""
    if labels is None:
        return NotImplemented
    cell, index = x.cell, labels.view(x.shape[0], 1, *x.shape[2:])
    values = Cell(
        lambda: cell.peek().gather(1, index).view(labels.shape), [], cell.session, bases=[cell], site=cell.site
    )
    return wrap(values, form_of(labels)._replace(dtype=x.dtype), x.device), labels


@structure(aten.argmax.default)
def _argmax(func: Any, x: Deferred, dim: int | None = None, keepdim: bool = False) -> Any:
    labels = _labels(x, dim, keepdim, "argmax")
    return NotImplemented if labels is None else labels


@structure(aten.max.dim)
def _max(func: Any, x: Deferred, dim: int, keepdim: bool = False) -> Any:
    return _with_values(x, _labels(x, dim, keepdim, "max"))


@structure(aten.topk.default)
def _topk(func: Any, x: Deferred, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return _with_values(x, _labels(x, dim, True, "topk") if k == 1 and largest else None)
