"""Cross-entropy of one head's low-resolution logits against full-resolution labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.layout import empty_like_dense
from pspnet_fast.loss_options import LossOptions
from pspnet_fast.ops.checks import check_map, check_target, differentiable
from pspnet_fast.ops.cross_entropy_composed import check_options, compose, define, fake, scale_state
from pspnet_fast.ops.operator import Operator, overload, second_gradient


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


def check_labels(device: torch.device | str | int | None = None) -> None:
    """Wait for a GPU, and raise if a cross-entropy there has met a label out of range since the last check.

    On a GPU such a label raises in the next call of the same host thread, so the last call of a program never raises.
    A replayed CUDA graph runs no host code: a loop of replays raises here alone. Call it at the end of every epoch, and
    at the end. On the CPU the call itself raises, and there is nothing to wait for.

    Args:
        device: one GPU; None: every GPU that this process holds memory on.

    Raises:
        IndexError: a label outside ``[0, C)`` that is not ``ignore_index``, met by any thread of this process. Its
            pixel was left out of loss and gradient. One label is named, and all are forgotten.
    """
    for checked in _used_gpus() if device is None else [torch.device(device)]:
        like = torch.empty(0, device=checked)
        CHECK_LABELS.run("cuda", like)
        if "pspnet_fast.triton.label_flag" in sys.modules:
            CHECK_LABELS.run("triton", like)


def _used_gpus() -> list[torch.device]:
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i) > 0]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.per_pixel, _, *options = inputs
    save_head(ctx, output[1:], options, logits, target, output[2])


def save_head(ctx: Any, rest: Sequence[Tensor], options: Sequence[Any], *tensors: Tensor) -> None:
    """Keep what :func:`differentiate_head` needs; ``rest`` are outputs that are not differentiable."""
    ctx.options = given = LossOptions(*options)
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(False)  # else these get gradients of zeros in full size
    ctx.save_for_backward(*tensors, given.weight, given.pixel_weight)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None]:
    return (differentiate_head(ctx, grad, *ctx.saved_tensors),)


def differentiate_head(
    ctx: Any, grad: Tensor | None, logits: Tensor, target: Tensor, state: Tensor, *weights: Tensor | None
) -> Tensor | None:
    """The gradient by a head's logits, of the upstream gradient of its losses."""
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


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, logits, target, _, ctx.per_pixel, *options = inputs
    save_head(ctx, (), options, grad, logits, target)


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
)
# Of both cross-entropies, head by head.
LOSS_BACKWARD = Operator(
    "upsample_cross_entropy_backward",
    fake=lambda grad, logits, *options: empty_like_dense(logits),
    composition=_backward,
    triton=partial(_backward, variant="_triton"),
    save=_save_backward,
    gradient=_differentiate_again,
)
# On the CPU labels have been looked at.
CHECK_LABELS = Operator(
    "check_labels", fake=lambda like: None, composition=lambda like: None, triton="label_flag:check_labels"
)
