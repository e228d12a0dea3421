"""Cross-entropy of one head's low-resolution logits against full-resolution labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops._checks import check_map, check_target
from pspnet_fast.ops._cross_entropy import (
    Options,
    check_options,
    compose_backward,
    compose_forward,
    empty_gradient,
    fake_forward,
    only_losses_are_differentiable,
    reduce_losses,
    wants_gradient,
)
from pspnet_fast.ops.operator import Autocast, Operator, second_gradient


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
        IndexError: on the CPU, a label outside ``[0, C)`` that is not ``ignore_index``, as PyTorch words it.

    Differentiable twice by ``logits``.
    """
    check_map("logits", logits)
    check_target(logits, target)
    options: dict[str, Any] = {
        "weight": weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "denominator": denominator,
        "empty": empty,
        "align_corners": align_corners,
        "pixel_weight": pixel_weight,
    }
    packed = check_options(logits, target, **options)
    loss: Tensor = LOSS(logits, target, wants_gradient(logits), *packed)[0]
    return loss


def _define(logits: Tensor, target: Tensor, gradient: bool, *options: Any) -> tuple[Tensor]:
    return (reference.upsample_cross_entropy(logits, target, **Options(*options).as_keywords()),)


def _forward(logits: Tensor, target: Tensor, gradient: bool, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return compose_forward(logits, target, gradient, Options(*options))


def _backward(grad: Tensor, scale: Tensor, logits: Tensor, target: Tensor, state: Tensor, *options: Any) -> Tensor:
    return compose_backward(grad, scale, logits, target, state, Options(*options))


def _triton_forward(logits: Tensor, target: Tensor, gradient: bool, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    from pspnet_fast.triton import cross_entropy

    packed = Options(*options)
    losses, divisor, state = cross_entropy.upsample_cross_entropy(logits, target, gradient, *packed.of_sums())
    return *reduce_losses(losses, divisor, target, packed), state


def _triton_backward(
    grad: Tensor, scale: Tensor, logits: Tensor, target: Tensor, state: Tensor, *options: Any
) -> Tensor:
    from pspnet_fast.triton import cross_entropy

    of_sums = Options(*options).of_sums()
    return cross_entropy.upsample_cross_entropy_backward(grad * scale, logits, target, state, *of_sums)


def _fake_forward(logits: Tensor, target: Tensor, gradient: bool, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_forward(logits, target, gradient, Options(*options))


def _fake_backward(grad: Tensor, scale: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return empty_gradient(logits)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, _, *options = inputs
    ctx.options = Options(*options)
    only_losses_are_differentiable(ctx, output[1:])
    ctx.save_for_backward(output[1], logits, target, output[2], ctx.options.weight, ctx.options.pixel_weight)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None]:
    if grad is None:
        return (None,)
    *tensors, weight, pixel_weight = ctx.saved_tensors
    options = ctx.options._replace(weight=weight, pixel_weight=pixel_weight)
    return (LOSS_BACKWARD.like(ctx)(grad, *tensors, *options),)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, _, logits, target, _, *options = inputs
    ctx.options = Options(*options)
    ctx.save_for_backward(grad, logits, target, ctx.options.weight, ctx.options.pixel_weight)


def _differentiate_again(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, logits, target, weight, pixel_weight = ctx.saved_tensors
    keywords = ctx.options._replace(weight=weight, pixel_weight=pixel_weight).as_keywords()

    def definition(z: Tensor) -> Tensor:
        return reference.upsample_cross_entropy(z, target, **keywords)

    by_grad, by_logits = second_gradient(definition, [logits], grad, [cotangent])
    return by_grad, None, by_logits


LOSS = Operator(
    "upsample_cross_entropy",
    fake=_fake_forward,
    definition=_define,
    composition=_forward,
    triton=_triton_forward,
    save=_save_forward,
    gradient=_differentiate,
    autocast=Autocast(),
)
LOSS_BACKWARD = Operator(
    "upsample_cross_entropy_backward",
    fake=_fake_backward,
    composition=_backward,
    triton=_triton_backward,
    save=_save_backward,
    gradient=_differentiate_again,
)
