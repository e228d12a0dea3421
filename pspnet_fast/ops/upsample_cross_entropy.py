"""Cross-entropy of one head's low-resolution logits against full-resolution labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.layout import empty_like_dense
from pspnet_fast.loss_options import LossOptions
from pspnet_fast.ops.checks import check_map, check_target, differentiable
from pspnet_fast.ops.cross_entropy_composed import (
    check_options,
    compose,
    define,
    fake,
    only_losses_are_differentiable,
    scale_state,
)
from pspnet_fast.ops.operator import Autocast, Operator, overload, second_gradient


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: str | float = "valid",
    empty: str = "nan",
    align_corners: bool = True,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """``F.cross_entropy(F.interpolate(logits, target's size, mode="bilinear"), target)`` as one operator.

    Args:
        logits: ``[B, C, h, w]``, floating-point; arithmetic is in float32 at least.
        target: ``[B, H, W]`` class indices, int64, int32 or uint8.
        weight: ``[C]``, a factor per class, as in ``torch.nn.CrossEntropyLoss``.
        ignore_index: the label of pixels that are left out; may be negative (-1, -100).
        label_smoothing: in [0, 1], as in ``torch.nn.CrossEntropyLoss``.
        reduction: "none" (a map ``[B, H, W]``, zero at ignored pixels), "sum" or "mean".
        denominator: what "mean" divides by. "valid": the sum of class weight times pixel weight over the pixels that
            are not ignored (PyTorch's). "all": the number of pixels, ignored ones too (mmsegmentation's default). A
            positive number: itself (a global count over processes, say).
        empty: the mean where nothing is left to divide by: "nan" (PyTorch's) or "zero". The gradient is zero in both.
        align_corners: of the upsampling.
        pixel_weight: ``[B, H, W]``, a factor per pixel (0 leaves a pixel out), not differentiable.

    Returns:
        The loss, 0-d or ``[B, H, W]``; float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: a bad shape, dtype or option.
        IndexError: on the CPU, a label outside ``[0, C)`` that is not ``ignore_index``, as PyTorch words it; on a GPU
            one that an earlier call of this thread has met, see :func:`pspnet_fast.check_labels`.

    Differentiable twice by ``logits``.
    """
    check_map("logits", logits)
    check_target(logits, target)
    options, how = check_options(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        align_corners=align_corners,
        pixel_weight=pixel_weight,
    )
    losses, divisor, *_ = LOSS(logits, target, how.per_pixel, differentiable(logits), *options)
    return how.apply([losses], divisor, target)[0]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.per_pixel, _, *options = inputs
    ctx.options = LossOptions(*options)
    only_losses_are_differentiable(ctx, output[1:])
    ctx.save_for_backward(logits, target, output[2], ctx.options.weight, ctx.options.pixel_weight)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None]:
    logits, target, state, *weights = ctx.saved_tensors
    return (differentiate_head(ctx, grad, logits, target, state, weights),)


def differentiate_head(
    ctx: Any, grad: Tensor | None, logits: Tensor, target: Tensor, state: Tensor, weights: Sequence[Tensor | None]
) -> Tensor | None:
    """The gradient by a head's logits, of the upstream gradient of its losses.

    Args:
        ctx: of a forward that saved ``options`` and ``per_pixel``.
        weights: ``weight`` and ``pixel_weight`` of the options.
    """
    if grad is None:
        return None
    if not ctx.per_pixel and not torch.is_grad_enabled():  # not to be differentiated again
        return scale_state(grad, logits, state)
    options = ctx.options._replace(weight=weights[0], pixel_weight=weights[1])
    found: Tensor = LOSS_BACKWARD.like(ctx)(grad, logits, target, state, ctx.per_pixel, *options)
    return found


def _backward(
    grad: Tensor, logits: Tensor, target: Tensor, state: Tensor, per_pixel: bool, *options: Any, variant: str = ""
) -> Tensor:
    if not per_pixel:
        return scale_state(grad, logits, state)
    # Σ g_p · loss_p is the sum of losses with g among the weights of the pixels.
    given = LossOptions(*options)
    weights = grad if given.pixel_weight is None else grad * given.pixel_weight.to(grad.dtype)
    forward = overload(f"upsample_cross_entropy{variant}")
    state = forward(logits, target, False, True, *given._replace(pixel_weight=weights))[2]
    return empty_like_dense(logits).copy_(state)


def _backward_triton(*arguments: Any) -> Tensor:
    return _backward(*arguments, variant="_triton")


def _fake_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return empty_like_dense(logits)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, logits, target, _, ctx.per_pixel, *options = inputs
    ctx.options = LossOptions(*options)
    ctx.save_for_backward(grad, logits, target, ctx.options.weight, ctx.options.pixel_weight)


def _differentiate_again(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, logits, target, weight, pixel_weight = ctx.saved_tensors
    options = ctx.options._replace(weight=weight, pixel_weight=pixel_weight)

    def definition(z: Tensor) -> Tensor:
        return define(z, target, ctx.per_pixel, False, *options)[0]

    return tuple(second_gradient(definition, [logits], grad, [cotangent]))


LOSS = Operator(
    "upsample_cross_entropy",
    fake=fake,
    definition=define,
    composition=compose,
    triton="cross_entropy:upsample_cross_entropy",
    save=_save,
    gradient=_differentiate,
    autocast=Autocast(),
)
# Of both cross-entropies, head by head.
LOSS_BACKWARD = Operator(
    "upsample_cross_entropy_backward",
    fake=_fake_backward,
    composition=_backward,
    triton=_backward_triton,
    save=_save_backward,
    gradient=_differentiate_again,
)
