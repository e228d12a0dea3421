"""PSPNet's training loss, L = L_main + λ · L_aux, from both heads' low-resolution logits (Zhao et al. 2017, eq. in 3.3).

Both heads are scored against one target, read once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.backend import select
from pspnet_fast.ops._checks import check_map, check_target
from pspnet_fast.ops._cross_entropy import (
    OPTION_COUNT,
    Options,
    check_options,
    composed_backward,
    composed_forward,
    fake_loss,
)
from pspnet_fast.ops._library import overload, register, register_autocast, register_composition, second_gradient
from pspnet_fast.reference import DualLoss


def dual_cross_entropy(
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    *,
    aux_weight: float | Tensor = 0.4,
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
    check_map("main", main)
    check_map("aux", aux)
    check_target(main, target)
    if aux.shape[:2] != main.shape[:2] or aux.device != main.device:
        raise ValueError(
            f"aux must have the batch, classes and device of main, {tuple(main.shape[:2])} on {main.device}, "
            f"not {tuple(aux.shape[:2])} on {aux.device}"
        )
    options = check_options(
        main,
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
    if select("dual_cross_entropy", main.device.type) == "reference":
        return reference.dual_cross_entropy(
            main, aux, target, aux_weight=aux_weight, **options.as_keywords()  # type: ignore[arg-type]
        )
    main_loss, aux_loss = overload("dual_cross_entropy")(main, aux, target, *options)
    return DualLoss(main_loss + aux_weight * aux_loss, main_loss, aux_loss)


def _forward(main: Tensor, aux: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    packed = Options(*options)
    return composed_forward(main, target, packed), composed_forward(aux, target, packed)


def _backward(
    grad_main: Tensor, grad_aux: Tensor, main: Tensor, aux: Tensor, target: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    packed = Options(*options)
    return composed_backward(grad_main, main, target, packed), composed_backward(grad_aux, aux, target, packed)


def _fake_forward(main: Tensor, aux: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    packed = Options(*options)
    return fake_loss(main, target, packed), fake_loss(aux, target, packed)


def _fake_backward(
    grad_main: Tensor, grad_aux: Tensor, main: Tensor, aux: Tensor, target: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(main), torch.empty_like(aux)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    main, aux, target, *options = inputs
    ctx.options = Options(*options)
    ctx.save_for_backward(main, aux, target, ctx.options.weight, ctx.options.pixel_weight)


def _differentiate(ctx: Any, grad_main: Tensor, grad_aux: Tensor) -> tuple[Tensor | None, ...]:
    main, aux, target, weight, pixel_weight = ctx.saved_tensors
    options = ctx.options._replace(weight=weight, pixel_weight=pixel_weight)
    grads = overload("dual_cross_entropy_backward")(grad_main, grad_aux, main, aux, target, *options)
    return *grads, None, *[None] * OPTION_COUNT


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = Options(*inputs[5:])
    ctx.save_for_backward(*inputs[:5], ctx.options.weight, ctx.options.pixel_weight)


def _differentiate_again(ctx: Any, cotangent_main: Tensor, cotangent_aux: Tensor) -> tuple[Tensor | None, ...]:
    grad_main, grad_aux, main, aux, target, weight, pixel_weight = ctx.saved_tensors
    options = ctx.options._replace(weight=weight, pixel_weight=pixel_weight)

    def definition(z: Tensor) -> Tensor:
        return reference.upsample_cross_entropy(z, target, **options.as_keywords())

    twice_main = second_gradient(definition, [main], grad_main, [cotangent_main])
    twice_aux = second_gradient(definition, [aux], grad_aux, [cotangent_aux])
    return twice_main[0], twice_aux[0], twice_main[1], twice_aux[1], None, *[None] * OPTION_COUNT


register_composition("dual_cross_entropy", _forward)
register_composition("dual_cross_entropy_backward", _backward)
register("dual_cross_entropy", fake=_fake_forward, setup_context=_save_forward, backward=_differentiate)
register(
    "dual_cross_entropy_backward", fake=_fake_backward, setup_context=_save_backward, backward=_differentiate_again
)
register_autocast("dual_cross_entropy")
