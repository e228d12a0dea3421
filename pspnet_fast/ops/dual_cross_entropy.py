"""PSPNet's training loss, L = L_main + λ · L_aux, from both heads' low-resolution logits (Zhao et al. 2017, 3.3).

The main head's arg-max, which training scripts report accuracy from, falls out of the same pass.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
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
    options = {
        "aux_weight": aux_weight,
        "weight": weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "denominator": denominator,
        "empty": empty,
        "align_corners": align_corners,
        "pixel_weight": pixel_weight,
    }
    return DualLoss(*_dual(main, aux, target, False, False, options)[:3])


def dual_cross_entropy_argmax(
    main: Tensor, aux: Tensor, target: Tensor, *, labels: bool = True, correct: bool = False, **options: Any
) -> DualPrediction:
    """:func:`dual_cross_entropy`, and what accuracy is reported from, by the main head.

    Args:
        main, aux, target: as in :func:`dual_cross_entropy`.
        labels: whether the most likely class of every pixel is wanted.
        correct: whether the number of pixels is wanted whose most likely class is their label.
        options: the keyword arguments of :func:`dual_cross_entropy`.

    Returns:
        ``DualPrediction(loss, main, aux, labels, correct)``: the losses; int64 labels ``[B, H, W]`` (see
        :func:`pspnet_fast.upsample_argmax`) or None; an int64 0-d count (ignored pixels do not count) or None.
    """
    return _dual(main, aux, target, labels, correct, {**_DEFAULTS, **options})


_DEFAULTS: dict[str, Any] = {
    "aux_weight": DEFAULT_AUX_WEIGHT,
    "weight": None,
    "ignore_index": 255,
    "label_smoothing": 0.0,
    "reduction": "mean",
    "denominator": "valid",
    "empty": "nan",
    "align_corners": True,
    "pixel_weight": None,
}


def _dual(
    main: Tensor, aux: Tensor, target: Tensor, labels: bool, correct: bool, options: dict[str, Any]
) -> DualPrediction:
    check_map("main", main)
    check_map("aux", aux)
    check_target(main, target)
    if aux.shape[:2] != main.shape[:2] or aux.device != main.device or aux.dtype != main.dtype:
        raise ValueError(
            f"aux must have the batch, classes, dtype and device of main, {tuple(main.shape[:2])} {main.dtype} on "
            f"{main.device}, not {tuple(aux.shape[:2])} {aux.dtype} on {aux.device}"
        )
    scoring = dict(options)
    aux_weight = scoring.pop("aux_weight")
    _check_aux_weight(aux_weight)
    packed = check_options(main, target, **scoring)
    main_loss, aux_loss, _, _, _, best, count = DUAL(
        main, aux, target, wants_gradient(main, aux), labels, correct, *packed
    )
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


def _define(
    main: Tensor, aux: Tensor, target: Tensor, gradient: bool, labels: bool, correct: bool, *options: Any
) -> tuple[Tensor | None, ...]:
    result = reference.dual_cross_entropy_argmax(
        main, aux, target, labels=labels, correct=correct, **Options(*options).as_keywords()
    )
    return result.main, result.aux, None, None, None, result.labels, result.correct


def _forward(
    main: Tensor, aux: Tensor, target: Tensor, gradient: bool, labels: bool, correct: bool, *options: Any
) -> tuple[Tensor, ...]:
    packed = Options(*options)
    main_loss, scale, main_state = compose_forward(main, target, gradient, packed)
    aux_loss, _, aux_state = compose_forward(aux, target, gradient, packed)
    best, count = _no_count(target), _no_count(target)
    if labels or correct:
        found = reference.upsample_argmax(main, target.shape[1:], align_corners=packed.align_corners)
        count = reference.correct_pixels(found, target, packed.ignore_index) if correct else count
        best = found if labels else best
    return main_loss, aux_loss, scale, main_state, aux_state, best, count


def _no_count(target: Tensor) -> Tensor:
    return target.new_empty(0, dtype=torch.int64)


def _backward(
    grad_main: Tensor,
    grad_aux: Tensor,
    scale: Tensor,
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    main_state: Tensor,
    aux_state: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    packed = Options(*options)
    return (
        compose_backward(grad_main, scale, main, target, main_state, packed),
        compose_backward(grad_aux, scale, aux, target, aux_state, packed),
    )


def _triton_forward(
    main: Tensor, aux: Tensor, target: Tensor, gradient: bool, labels: bool, correct: bool, *options: Any
) -> tuple[Tensor, ...]:
    from pspnet_fast.triton import cross_entropy

    packed = Options(*options)
    main_sum, aux_sum, divisor, *rest = cross_entropy.dual_cross_entropy(
        main, aux, target, gradient, labels, correct, *packed.of_sums()
    )
    main_loss, scale = reduce_losses(main_sum, divisor, target, packed)
    return main_loss, reduce_losses(aux_sum, divisor, target, packed)[0], scale, *rest


def _triton_backward(grad_main: Tensor, grad_aux: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from pspnet_fast.triton import cross_entropy

    tensors, of_sums = rest[:5], Options(*rest[5:]).of_sums()
    return cross_entropy.dual_cross_entropy_backward(grad_main * scale, grad_aux * scale, *tensors, *of_sums)


def _fake_forward(
    main: Tensor, aux: Tensor, target: Tensor, gradient: bool, labels: bool, correct: bool, *options: Any
) -> tuple[Tensor, ...]:
    packed = Options(*options)
    main_loss, scale, main_state = fake_forward(main, target, gradient, packed)
    aux_loss, _, aux_state = fake_forward(aux, target, gradient, packed)
    best = target.new_empty(target.shape, dtype=torch.int64) if labels else _no_count(target)
    count = target.new_empty((), dtype=torch.int64) if correct else _no_count(target)
    return main_loss, aux_loss, scale, main_state, aux_state, best, count


def _fake_backward(
    grad_main: Tensor, grad_aux: Tensor, scale: Tensor, main: Tensor, aux: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return empty_gradient(main), empty_gradient(aux)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    main, aux, target, _, _, _, *options = inputs
    ctx.options = Options(*options)
    frozen = [loss for loss, needed in zip(output[:2], ctx.needs_input_grad[:2], strict=True) if not needed]
    only_losses_are_differentiable(ctx, [*frozen, *output[2:]])
    ctx.save_for_backward(*output[2:3], main, aux, target, *output[3:5], ctx.options.weight, ctx.options.pixel_weight)


def _differentiate(
    ctx: Any, grad_main: Tensor | None, grad_aux: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, weight, pixel_weight = ctx.saved_tensors
    some = grad_main if grad_main is not None else grad_aux
    if some is None:
        return None, None
    grad_main = torch.zeros_like(some) if grad_main is None else grad_main
    grad_aux = torch.zeros_like(some) if grad_aux is None else grad_aux
    options = ctx.options._replace(weight=weight, pixel_weight=pixel_weight)
    found: tuple[Tensor, Tensor] = DUAL_BACKWARD.like(ctx)(grad_main, grad_aux, *tensors, *options)
    return found


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = Options(*inputs[8:])
    ctx.save_for_backward(*inputs[:2], *inputs[3:6], ctx.options.weight, ctx.options.pixel_weight)


def _differentiate_again(ctx: Any, cotangent_main: Tensor, cotangent_aux: Tensor) -> tuple[Tensor | None, ...]:
    grad_main, grad_aux, main, aux, target, weight, pixel_weight = ctx.saved_tensors
    keywords = ctx.options._replace(weight=weight, pixel_weight=pixel_weight).as_keywords()

    def definition(z: Tensor) -> Tensor:
        return reference.upsample_cross_entropy(z, target, **keywords)

    twice_main = second_gradient(definition, [main], grad_main, [cotangent_main])
    twice_aux = second_gradient(definition, [aux], grad_aux, [cotangent_aux])
    return twice_main[0], twice_aux[0], None, twice_main[1], twice_aux[1]


DUAL = Operator(
    "dual_cross_entropy",
    fake=_fake_forward,
    definition=_define,
    composition=_forward,
    triton=_triton_forward,
    save=_save_forward,
    gradient=_differentiate,
    autocast=Autocast(),
)
DUAL_BACKWARD = Operator(
    "dual_cross_entropy_backward",
    fake=_fake_backward,
    composition=_backward,
    triton=_triton_backward,
    save=_save_backward,
    gradient=_differentiate_again,
)
