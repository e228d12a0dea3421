"""What both cross-entropy operators share: their options, and a composition of PyTorch operators.

The operators give the reduced loss, ``scale`` = d loss / d(sum of losses), 0-d, and ``state`` for their own backward.
Loss and gradient share nearly all of their work, so a sum whose gradient will be asked for computes it at once:
``state`` is the gradient of the sum of losses, and backward only scales it. A loss per pixel does not know its upstream
gradient yet; it keeps nothing, and backward is the gradient of the sum whose pixels are weighted by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops._checks import check_choice, same_device
from pspnet_fast.ops._interpolation import upsample_adjoint

# The operators' denominator is a number: these, or a positive one that is meant itself.
VALID, ALL = 0.0, -1.0


class Options(NamedTuple):
    """The options of the operators, in the order of their schemas."""

    weight: Tensor | None
    pixel_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str
    denominator: float
    empty: str
    align_corners: bool

    def of_sums(self) -> tuple[Any, ...]:
        """For kernels that sum and leave the mean to :func:`reduce_losses`: per_pixel in the place of the reduction."""
        return *self[:4], self.reduction == "none", self.align_corners

    def as_keywords(self) -> dict[str, Any]:
        """As keyword arguments of the reference."""
        named = {VALID: "valid", ALL: "all"}.get(self.denominator, self.denominator)
        return {**self._asdict(), "denominator": named}


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
    if target.shape[1] < 1 or target.shape[2] < 1:
        raise ValueError(f"target has no pixels: its shape is {tuple(target.shape)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing!r}")
    if weight is not None:
        if weight.shape != logits.shape[1:2]:
            raise ValueError(f"weight must be [{logits.shape[1]}], one per class, not {tuple(weight.shape)}")
        _check_factor("weight", weight)
        same_device("weight", weight, "logits", logits)
    if pixel_weight is not None:
        if pixel_weight.shape != target.shape:
            raise ValueError(f"pixel_weight must be {tuple(target.shape)}, as target, not {tuple(pixel_weight.shape)}")
        _check_factor("pixel_weight", pixel_weight)
        same_device("pixel_weight", pixel_weight, "logits", logits)
    number = {"valid": VALID, "all": ALL}[denominator] if isinstance(denominator, str) else float(denominator)
    return Options(weight, pixel_weight, ignore_index, label_smoothing, reduction, number, empty, align_corners)


def _check_factor(name: str, tensor: Tensor) -> None:
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, not {tensor.dtype}; convert it with {name}.real")
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but the loss is not differentiable by it; pass {name}.detach()")


def loss_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def wants_gradient(*logits: Tensor) -> bool:
    """Whether autograd will record a loss of ``logits``."""
    return torch.is_grad_enabled() and any(z.requires_grad for z in logits)


def reduce_losses(losses: Tensor, divisor: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """``(loss, scale)`` of the sum of losses, or of every pixel's, and PyTorch's divisor of the mean."""
    if options.reduction != "mean":
        return losses, torch.ones_like(divisor)
    if options.denominator == ALL:
        divisor = torch.full_like(divisor, target.numel())
    elif options.denominator != VALID:
        divisor = torch.full_like(divisor, options.denominator)
    nothing = divisor == 0
    scale = divisor.reciprocal().masked_fill(nothing, 0)
    return reference.divide_or_empty(losses, divisor, options.empty), scale


def compose_forward(logits: Tensor, target: Tensor, gradient: bool, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """``(loss, scale, state)`` of one head by PyTorch operators, for devices without a kernel."""
    up = F.interpolate(
        reference.accumulation(logits), target.shape[1:], mode="bilinear", align_corners=options.align_corners
    )
    labels = target.long()
    weight = None if options.weight is None else options.weight.to(up.dtype)
    losses = reference.cross_entropy(
        up,
        labels,
        weight,
        options.ignore_index,
        options.label_smoothing,
        "none" if options.reduction == "none" else "sum",
        "valid",
        "nan",
        options.pixel_weight,
    )
    divisor = reference.loss_divisor(labels, weight, options.pixel_weight, options.ignore_index, "valid", up.dtype)
    loss, scale = reduce_losses(losses, divisor, target, options)
    state = _no_state(logits)
    if gradient and options.reduction != "none":
        state = _gradient_of_sum(scale.new_ones(()), up, logits, labels, options)
    return loss, scale, state


def compose_backward(
    grad: Tensor, scale: Tensor, logits: Tensor, target: Tensor, state: Tensor, options: Options
) -> Tensor:
    """The gradient of :func:`compose_forward`'s loss with respect to the low-resolution logits."""
    if options.reduction == "none":
        up = F.interpolate(
            reference.accumulation(logits), target.shape[1:], mode="bilinear", align_corners=options.align_corners
        )
        result = empty_gradient(logits)
        return result.copy_(_gradient_of_sum(grad, up, logits, target.long(), options))
    return scale_state(grad, scale, logits, state)


def scale_state(grad: Tensor, scale: Tensor, logits: Tensor, state: Tensor) -> Tensor:
    """Backward of a reduced loss: ``state`` times its upstream gradient, in the dtype of ``logits``."""
    if state.shape != logits.shape:
        raise RuntimeError("the cross-entropy was computed without its gradient: call the operator with gradient=True")
    return torch.mul(state, grad * scale, out=empty_gradient(logits))


def _gradient_of_sum(grad: Tensor, up: Tensor, logits: Tensor, labels: Tensor, options: Options) -> Tensor:
    """The gradient with respect to ``logits`` of the sum of losses, each times ``grad`` (0-d or ``[B, H, W]``)."""
    valid = labels != options.ignore_index
    labels = labels.where(valid, 0)
    dense = up.softmax(dim=1)

    classes, smoothing = up.shape[1], options.label_smoothing
    scale = grad * valid.to(up.dtype)
    if options.pixel_weight is not None:
        scale = scale * options.pixel_weight.to(up.dtype)
    one_hot_share = scale * (1 - smoothing)
    if options.weight is not None:
        one_hot_share = one_hot_share * options.weight.to(up.dtype)[labels]
    if smoothing == 0:
        dense *= one_hot_share.unsqueeze(1)
    else:
        class_weight = up.new_ones(classes) if options.weight is None else options.weight.to(up.dtype)
        share = class_weight * (smoothing / classes)
        dense *= (one_hot_share + share.sum() * scale).unsqueeze(1)
        dense -= share.view(1, -1, 1, 1) * scale.unsqueeze(1)

    # Not scatter_add_, whose atomics torch.use_deterministic_algorithms refuses: each index occurs once.
    index = labels.unsqueeze(1)
    dense.scatter_(1, index, dense.gather(1, index) - one_hot_share.unsqueeze(1))
    result = empty_gradient(logits, loss_dtype(logits))
    result.copy_(upsample_adjoint(dense, logits.shape[2], logits.shape[3], options.align_corners))
    return result


def only_losses_are_differentiable(ctx: Any, outputs: Sequence[Tensor]) -> None:
    """Tell autograd so of an operator's other ``outputs``, which would else get gradients of zeros in full size."""
    ctx.mark_non_differentiable(*outputs)
    ctx.set_materialize_grads(False)


def empty_gradient(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty gradient of ``logits``: in their layout if that is NCHW or channels_last, else in NCHW."""
    dense = logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.preserve_format if dense else torch.contiguous_format
    return torch.empty_like(logits, dtype=dtype, memory_format=memory_format)


def _no_state(logits: Tensor) -> Tensor:
    return logits.new_empty(0, dtype=loss_dtype(logits))


def fake_forward(logits: Tensor, target: Tensor, gradient: bool, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors shaped as ``(loss, scale, state)``."""
    dtype = loss_dtype(logits)
    per_pixel = options.reduction == "none"
    loss = logits.new_empty(target.shape if per_pixel else (), dtype=dtype)
    state = empty_gradient(logits, dtype) if gradient and not per_pixel else _no_state(logits)
    return loss, logits.new_empty((), dtype=dtype), state
