"""What both cross-entropy operators share: their options, and forward and backward in PyTorch operators.

The composition goes image by image, so that full-resolution logits exist for one image at a time, and backward
recomputes them: what is kept is the low-resolution logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops._checks import check_choice, same_device
from pspnet_fast.ops._interpolation import upsample_adjoint

OPTION_COUNT = 9


class Options(NamedTuple):
    """The options of the operators, in the order of their schemas."""

    weight: Tensor | None
    pixel_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str
    denominator: str  # "valid", "all", or "number": then `divisor` is meant
    divisor: float
    empty: str
    align_corners: bool

    def as_keywords(self) -> dict[str, object]:
        """As the reference's keyword arguments."""
        keywords: dict[str, object] = self._asdict()
        divisor = keywords.pop("divisor")
        if self.denominator == "number":
            keywords["denominator"] = divisor
        return keywords


def check_options(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    denominator: str | float,
    empty: str,
    align_corners: bool,
    pixel_weight: Tensor | None,
) -> Options:
    """Validate the public options (see :func:`pspnet_fast.upsample_cross_entropy`) and pack them."""
    check_choice("reduction", reduction, ("none", "sum", "mean"))
    check_choice("empty", empty, ("nan", "zero"))
    if isinstance(denominator, str):
        check_choice("denominator", denominator, ("valid", "all"))
    elif not denominator > 0:
        raise ValueError(f"denominator must be 'valid', 'all' or a positive number, not {denominator!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing!r}")
    if weight is not None:
        if weight.shape != logits.shape[1:2]:
            raise ValueError(f"weight must be [{logits.shape[1]}], one per class, not {tuple(weight.shape)}")
        _not_differentiable("weight", weight)
        same_device("weight", weight, "logits", logits)
    if pixel_weight is not None:
        if pixel_weight.shape != target.shape:
            raise ValueError(f"pixel_weight must be {tuple(target.shape)}, as target, not {tuple(pixel_weight.shape)}")
        _not_differentiable("pixel_weight", pixel_weight)
        same_device("pixel_weight", pixel_weight, "logits", logits)
    by_number = not isinstance(denominator, str)
    return Options(
        weight,
        pixel_weight,
        ignore_index,
        label_smoothing,
        reduction,
        "number" if by_number else str(denominator),
        float(denominator) if by_number else 1.0,
        empty,
        align_corners,
    )


def _not_differentiable(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but the loss is not differentiable by it; pass {name}.detach()")


def composed_forward(logits: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss of one head: 0-d, or ``[B, H, W]`` for reduction "none"; float32 for half-precision logits."""
    per_pixel = options._replace(reduction="none", pixel_weight=None).as_keywords()
    maps = []
    for index in range(target.shape[0]):
        one = slice(index, index + 1)
        loss = reference.upsample_cross_entropy(logits[one], target[one], **per_pixel)  # type: ignore[arg-type]
        if options.pixel_weight is not None:
            loss = loss * options.pixel_weight[one].to(loss.dtype)
        maps.append(loss if options.reduction == "none" else loss.sum().view(1))
    empty_shape = target.shape if options.reduction == "none" else (0,)
    joined = torch.cat(maps) if maps else logits.new_zeros(empty_shape, dtype=_loss_dtype(logits))
    if options.reduction == "none":
        return joined
    if options.reduction == "sum":
        return joined.sum()
    return reference.divide_or_empty(joined.sum(), _divisor(logits, target, options), options.empty)


def composed_backward(grad: Tensor, logits: Tensor, target: Tensor, options: Options) -> Tensor:
    """The gradient of :func:`composed_forward` with respect to the low-resolution logits."""
    if options.reduction == "mean":
        divisor = _divisor(logits, target, options)
        nothing = divisor == 0
        grad = (grad / divisor.where(~nothing, 1)).where(~nothing, 0.0)
    result = torch.empty_like(logits, memory_format=torch.preserve_format)
    for index in range(target.shape[0]):
        one = slice(index, index + 1)
        upstream = grad[one] if options.reduction == "none" else grad
        if options.pixel_weight is not None:
            # Beside a 0-d upstream gradient of float64, a float32 map would decide the dtype.
            upstream = upstream * options.pixel_weight[one].to(grad.dtype)
        dense = _dense_gradient(logits[one], target[one], upstream, options)
        result[one] = upsample_adjoint(dense, logits.shape[2], logits.shape[3], options.align_corners)
    return result


def _dense_gradient(logits: Tensor, target: Tensor, upstream: Tensor, options: Options) -> Tensor:
    """``[1, C, H, W]``: softmax minus the smoothed one-hot label, weighted; zero at ignored pixels."""
    labels = target.long()
    valid = labels != options.ignore_index
    labels = labels.where(valid, 0)
    up = F.interpolate(
        reference.accumulation(logits), target.shape[1:], mode="bilinear", align_corners=options.align_corners
    )
    dense = up.softmax(dim=1)
    classes, smoothing = up.shape[1], options.label_smoothing

    scale = upstream * valid.to(up.dtype)
    one_hot_share = scale * (1 - smoothing)
    if options.weight is not None:
        one_hot_share *= options.weight.to(up.dtype)[labels]
    if smoothing == 0:
        dense *= one_hot_share.unsqueeze(1)
    else:
        class_weight = up.new_ones(classes) if options.weight is None else options.weight.to(up.dtype)
        share = class_weight * (smoothing / classes)
        dense *= (one_hot_share + share.sum() * scale).unsqueeze(1)
        dense -= share.view(1, -1, 1, 1) * scale.unsqueeze(1)
    # Not scatter_add_, whose atomics torch.use_deterministic_algorithms refuses: each index occurs once.
    index = labels.unsqueeze(1)
    return dense.scatter_(1, index, dense.gather(1, index) - one_hot_share.unsqueeze(1))


def _divisor(logits: Tensor, target: Tensor, options: Options) -> Tensor:
    dtype = _loss_dtype(logits)
    weight = None if options.weight is None else options.weight.to(dtype)
    denominator = options.divisor if options.denominator == "number" else options.denominator
    return reference.loss_denominator(
        target.long(), weight, options.pixel_weight, options.ignore_index, denominator, dtype
    )


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def fake_loss(logits: Tensor, target: Tensor, options: Options) -> Tensor:
    """An empty tensor shaped as the loss."""
    return logits.new_empty(target.shape if options.reduction == "none" else (), dtype=_loss_dtype(logits))
