"""PSPNet's training loss, L = L_main + λ · L_aux, from both heads' low-resolution logits (Zhao et al. 2017, 3.3).

The main head's arg-max, which training scripts report accuracy from, falls out of the same pass.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.loss_options import LossOptions
from pspnet_fast.ops.checks import check_map, check_target, differentiable
from pspnet_fast.ops.cross_entropy_composed import check_options, compose, define, fake
from pspnet_fast.ops.operator import Operator
from pspnet_fast.ops.upsample_cross_entropy import differentiate_head, save_head
from pspnet_fast.reference import DEFAULT_AUX_WEIGHT, DualLoss, DualPrediction


def dual_cross_entropy(
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    *,
    aux_weight: float | Tensor = DEFAULT_AUX_WEIGHT,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: str | float = "valid",
    empty: str = "nan",
    align_corners: bool = True,
    pixel_weight: Tensor | None = None,
) -> DualLoss:
    """The weighted sum of two heads' upsampled cross-entropies, ``main + aux_weight * aux``.

    Args:
        main: ``[B, C, h, w]`` logits of the main head.
        aux: ``[B, C, h', w']`` logits of the auxiliary head; its size may differ from main's.
        target: ``[B, H, W]`` class indices, int64, int32 or uint8.
        aux_weight: λ, a number or a 0-d tensor (differentiable).
        weight, ignore_index, label_smoothing, reduction, denominator, empty, align_corners, pixel_weight: for both
            heads, as in :func:`pspnet_fast.upsample_cross_entropy`.

    Returns:
        ``DualLoss(loss, main, aux)``: each 0-d, or ``[B, H, W]`` for reduction "none"; all three are differentiable.

    Raises:
        ValueError, TypeError, IndexError: as :func:`pspnet_fast.upsample_cross_entropy`.
    """
    result = dual_cross_entropy_argmax(
        main,
        aux,
        target,
        labels=False,
        aux_weight=aux_weight,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        align_corners=align_corners,
        pixel_weight=pixel_weight,
    )
    return DualLoss(*result[:3])


def dual_cross_entropy_argmax(
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    *,
    labels: bool = True,
    correct: bool = False,
    aux_weight: float | Tensor = DEFAULT_AUX_WEIGHT,
    **options: Any,
) -> DualPrediction:
    """:func:`dual_cross_entropy`, and what accuracy is reported from, by the main head.

    Args:
        main, aux, target: as in :func:`dual_cross_entropy`.
        labels: whether the most likely class of every pixel is wanted.
        correct: whether the number of pixels is wanted whose most likely class is their label.
        aux_weight, options: the keyword arguments of :func:`dual_cross_entropy`.

    Returns:
        ``DualPrediction(loss, main, aux, labels, correct)``: the losses; int64 labels ``[B, H, W]`` (see
        :func:`pspnet_fast.upsample_argmax`) or None; an int64 0-d count (ignored pixels do not count) or None.
    """
    check_map("main", main)
    check_map("aux", aux)
    check_target(main, target)
    if aux.shape[:2] != main.shape[:2] or aux.device != main.device or aux.dtype != main.dtype:
        raise ValueError(
            f"aux must have the batch, classes, dtype and device of main, {tuple(main.shape[:2])} {main.dtype} on "
            f"{main.device}, not {tuple(aux.shape[:2])} {aux.dtype} on {aux.device}"
        )
    _check_aux_weight(aux_weight)
    packed, how = check_options(main, target, **options)
    *losses, divisor, _, _, best, count = DUAL(
        main, aux, target, how.per_pixel, differentiable(main, aux), labels, correct, *packed
    )
    main_loss, aux_loss = how.apply(losses, divisor, target)
    if isinstance(aux_weight, Tensor):
        loss = main_loss + aux_weight * aux_loss
    else:
        loss = torch.add(main_loss, aux_loss, alpha=aux_weight)
    return DualPrediction(loss, main_loss, aux_loss, best if labels else None, count if correct else None)


def _check_aux_weight(aux_weight: object) -> None:
    if isinstance(aux_weight, Tensor):
        if aux_weight.dim() != 0 or not aux_weight.dtype.is_floating_point:
            raise ValueError(
                f"aux_weight must be a number or a 0-d floating-point tensor, not {aux_weight.dtype} of shape "
                f"{tuple(aux_weight.shape)}"
            )
    elif isinstance(aux_weight, bool) or not isinstance(aux_weight, numbers.Real):
        raise TypeError(f"aux_weight must be a number or a 0-d floating-point tensor, not {aux_weight!r}")


def _both_heads(one_head: Callable[..., Any]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The operator in PyTorch operators, of ``one_head`` in them."""

    def both(main: Tensor, aux: Tensor, target: Tensor, *flags_and_options: Any) -> tuple[Tensor | None, ...]:
        per_pixel, gradient, labels, correct, *options = flags_and_options
        main_losses, divisor, main_state = one_head(main, target, per_pixel, gradient, *options)
        aux_losses, _, aux_state = one_head(aux, target, per_pixel, gradient, *options)
        found = _argmax(main, target, labels, correct, LossOptions(*options))
        return main_losses, aux_losses, divisor, main_state, aux_state, *found

    return both


def _argmax(main: Tensor, target: Tensor, labels: bool, correct: bool, options: LossOptions) -> tuple[Tensor, Tensor]:
    best, count = _no_count(target), _no_count(target)
    if labels or correct:
        found = reference.upsample_argmax(main, target.shape[1:], align_corners=options.align_corners)
        count = reference.correct_pixels(found, target, options.ignore_index) if correct else count
        best = found if labels else best
    return best, count


def _no_count(target: Tensor) -> Tensor:
    return target.new_empty(0, dtype=torch.int64)


def _fake(
    main: Tensor, aux: Tensor, target: Tensor, per_pixel: bool, gradient: bool, labels: bool, correct: bool, *_: Any
) -> tuple[Tensor, ...]:
    main_losses, divisor, main_state = fake(main, target, per_pixel, gradient)
    aux_losses, aux_state = fake(aux, target, per_pixel, gradient)[::2]
    best = target.new_empty(target.shape, dtype=torch.int64) if labels else _no_count(target)
    count = target.new_empty((), dtype=torch.int64) if correct else _no_count(target)
    return main_losses, aux_losses, divisor, main_state, aux_state, best, count


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    main, aux, target, ctx.per_pixel, _, _, _, *options = inputs
    frozen = [losses for losses, needed in zip(output[:2], ctx.needs_input_grad[:2], strict=True) if not needed]
    save_head(ctx, [*frozen, *output[2:]], options, main, aux, target, *output[3:5])


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    main, aux, target, main_state, aux_state, *weights = ctx.saved_tensors
    return (
        differentiate_head(ctx, grads[0], main, target, main_state, *weights),
        differentiate_head(ctx, grads[1], aux, target, aux_state, *weights),
    )


DUAL = Operator(
    "dual_cross_entropy",
    fake=_fake,
    definition=_both_heads(define),
    composition=_both_heads(compose),
    triton="cross_entropy:dual_cross_entropy",
    save=_save,
    gradient=_differentiate,
)
