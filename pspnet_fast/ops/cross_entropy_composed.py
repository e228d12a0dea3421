"""What both cross-entropy operators share: the check of their options, and a composition of PyTorch operators.

The operators give the sum of losses (or a loss per pixel), ``divisor``, what a mean divides by, and ``state``, the
gradient of the sum. Loss and gradient share nearly all of their work, so a sum that autograd records computes its
gradient at once, and backward only scales it. A loss per pixel does not know its upstream gradient yet; it keeps
nothing, and backward is the gradient of the sum whose pixels are weighted by that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.geometry import upsample_adjoint
from pspnet_fast.layout import empty_like_dense
from pspnet_fast.loss_options import LossOptions, Reduction
from pspnet_fast.ops.checks import check_choice, same_device


def check_options(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    denominator: str | float = "valid",
    empty: str = "nan",
    **options: Any,
) -> tuple[LossOptions, Reduction]:
    """Validate the public options, see :func:`pspnet_fast.upsample_cross_entropy`."""
    given = LossOptions(**options)
    if not 0.0 <= given.label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {given.label_smoothing!r}")
    check_choice("reduction", reduction, ("none", "sum", "mean"))
    check_choice("empty", empty, ("nan", "zero"))
    if isinstance(denominator, str):
        check_choice("denominator", denominator, ("valid", "all"))
    elif not denominator > 0:
        raise ValueError(f"denominator must be 'valid', 'all' or a positive number, not {denominator!r}")
    if target.shape[1] < 1 or target.shape[2] < 1:
        raise ValueError(f"target has no pixels: its shape is {tuple(target.shape)}")
    if given.weight is not None:
        _check_factor("weight", given.weight, logits.shape[1:2], f"[{logits.shape[1]}], one per class", logits)
    if given.pixel_weight is not None:
        _check_factor("pixel_weight", given.pixel_weight, target.shape, f"{tuple(target.shape)}, as target", logits)
    return given, Reduction(reduction, denominator, empty)


def _check_factor(name: str, tensor: Tensor, shape: torch.Size, expected: str, logits: Tensor) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {expected}, not {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, not {tensor.dtype}; convert it with {name}.real")
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but the loss is not differentiable by it; pass {name}.detach()")
    same_device(name, tensor, "logits", logits)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def define(logits: Tensor, target: Tensor, per_pixel: bool, _: bool, *options: Any) -> tuple[Tensor, Tensor, None]:
    """``(losses, divisor, None)`` of one head by the definition, which autograd differentiates."""
    given = LossOptions(*options)
    reduction = "none" if per_pixel else "sum"
    losses = reference.upsample_cross_entropy(logits, target, reduction=reduction, **given._asdict())
    return losses, _divisor(logits, target, given), None


def _divisor(logits: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    dtype = loss_dtype(logits)
    weight, pixel_weight = options.class_weight(dtype), options.pixel_weight
    return reference.loss_divisor(target.long(), weight, pixel_weight, options.ignore_index, dtype)


def compose(
    logits: Tensor, target: Tensor, per_pixel: bool, gradient: bool, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``(losses, divisor, state)`` of one head by PyTorch operators, for devices without a kernel."""
    if per_pixel or not gradient:
        return *define(logits, target, per_pixel, gradient, *options)[:2], _no_state(logits)
    # Loss and gradient read the same upsampled logits, which are built once.
    given, labels = LossOptions(*options), target.long()
    of_map = given._asdict()
    up = reference.upsample(reference.accumulation(logits), target.shape[1:], of_map.pop("align_corners"))
    total = reference.cross_entropy(up, labels, reduction="sum", **of_map)
    return total, _divisor(logits, target, given), _gradient_of_sum(up, logits, labels, given)


def _gradient_of_sum(up: Tensor, logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """The gradient with respect to ``logits`` of the sum of losses of ``up``, the upsampled logits."""
    valid = labels != options.ignore_index
    labels = labels.where(valid, 0)
    dense = up.softmax(dim=1)

    classes, smoothing = up.shape[1], options.label_smoothing
    scale = valid.to(up.dtype)
    if options.pixel_weight is not None:
        scale = scale * options.pixel_weight.to(up.dtype)
    one_hot_share = scale * (1 - smoothing)
    weight = options.class_weight(up.dtype)
    if weight is not None:
        one_hot_share = one_hot_share * weight[labels]
    if smoothing == 0:
        dense *= one_hot_share.unsqueeze(1)
    else:
        share = (up.new_ones(classes) if weight is None else weight) * (smoothing / classes)
        dense *= (one_hot_share + share.sum() * scale).unsqueeze(1)
        dense -= share.view(1, -1, 1, 1) * scale.unsqueeze(1)

    # Not scatter_add_, whose atomics torch.use_deterministic_algorithms refuses: each index occurs once.
    index = labels.unsqueeze(1)
    dense.scatter_(1, index, dense.gather(1, index) - one_hot_share.unsqueeze(1))
    result = empty_like_dense(logits, loss_dtype(logits))
    return result.copy_(upsample_adjoint(dense, logits.shape[2], logits.shape[3], options.align_corners))


def scale_state(grad: Tensor, logits: Tensor, state: Tensor) -> Tensor:
    """Backward of a sum: ``state`` times its upstream gradient, in the dtype of ``logits``."""
    if state.shape != logits.shape:
        raise RuntimeError("the cross-entropy was computed without its gradient: call the operator with gradient=True")
    return torch.mul(state, grad, out=empty_like_dense(logits))


def _no_state(logits: Tensor) -> Tensor:
    return logits.new_empty(0, dtype=loss_dtype(logits))


def fake(logits: Tensor, target: Tensor, per_pixel: bool, gradient: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors shaped as ``(losses, divisor, state)``."""
    dtype = loss_dtype(logits)
    losses = logits.new_empty(target.shape if per_pixel else (), dtype=dtype)
    state = empty_like_dense(logits, dtype) if gradient and not per_pixel else _no_state(logits)
    return losses, logits.new_empty((), dtype=dtype), state
