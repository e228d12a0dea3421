"""The cross-entropies of upsampled logits in Triton, without full-resolution logits, for any GPU that Triton reaches.

    forward    every pixel's m = max z and s = Σ exp(z - m)  ->  loss = m + log s - z_y   (cross_entropy_forward.py)
    gradient   softmax = exp(z - m) / s, again, cell by cell  ->  d total / d logits       (cross_entropy_backward.py)

A step over B images, two heads of C classes and P pixels takes 4·B·P·C exponentials and three launches: heads of one
shape share each. In memory beyond the gradients stand 24·B·P bytes until the gradient is there (86 MB for 16 crops of
473 x 473). Every sum has one owner and a fixed order: no atomics, the same bits every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pspnet_fast.triton.cross_entropy_launch import Terms, empty_state, head_sums


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    gradient: bool,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of one head's upsampled logits; ``Real`` is float64 for float64 logits, else float32.

    Args:
        logits: ``[B, C, h, w]``, float32, float64, float16 or bfloat16, with any strides.
        target: ``[B, H, W]`` class indices, int64, int32 or uint8.
        gradient: whether backward will be wanted.
        weight: ``[C]``, a factor per class, or None.
        pixel_weight: ``[B, H, W]``, a factor per pixel, or None.
        ignore_index: the label of pixels that are left out.
        label_smoothing: in [0, 1].
        per_pixel: a loss per pixel instead of the sum.
        align_corners: of the upsampling.

    Returns:
        ``total``: Real, 0-d, or ``[B, H, W]`` if ``per_pixel``. ``divisor``: Real, 0-d, the sum of class weight times
        pixel weight over the pixels that count. ``state``: with ``gradient`` and without ``per_pixel`` the gradient of
        ``total`` by the logits, Real, in their layout; else empty.

    Raises:
        IndexError: a label out of range (see label_flag.py).
    """
    terms = Terms(weight, ignore_index, label_smoothing, per_pixel, align_corners)
    sums = head_sums([logits], target, terms, [pixel_weight], gradient=gradient)
    return sums.totals[0], sums.divisor, sums.states[0]


def upsample_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    state: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
    align_corners: bool,
) -> Tensor:
    """The gradient by ``logits``, of their dtype and layout, for the upstream gradient ``grad`` of ``total``."""
    if not per_pixel:
        return _scaled(state, grad, logits)
    terms = Terms(weight, ignore_index, label_smoothing, False, align_corners)
    sums = head_sums([logits], target, terms, [_weighted(grad, pixel_weight)], gradient=True)
    return _scaled(sums.states[0], None, logits)


def dual_cross_entropy(
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    gradient: bool,
    labels: bool,
    correct: bool,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`upsample_cross_entropy` of two heads against one target, and the main head's arg-max.

    Args:
        main: ``[B, C, h, w]``.
        aux: ``[B, C, h', w']``, of main's dtype.
        labels: whether the arg-max is wanted.
        correct: whether the number of pixels is wanted, of those that count, whose arg-max is their label.

    Returns:
        ``(main_total, aux_total, divisor, main_state, aux_state, labels, correct)``; ``labels`` is int64 ``[B, H, W]``,
        ``correct`` int64 0-d, and each is empty unless wanted.

    Raises:
        IndexError: a label out of range (see label_flag.py).
    """
    terms = Terms(weight, ignore_index, label_smoothing, per_pixel, align_corners)
    sums = head_sums(
        [main, aux], target, terms, [pixel_weight, pixel_weight], gradient=gradient, labels=labels, correct=correct
    )
    (main_total, aux_total), (main_state, aux_state) = sums.totals, sums.states
    return main_total, aux_total, sums.divisor, main_state, aux_state, sums.labels, sums.correct


def dual_cross_entropy_backward(
    grad_main: Tensor,
    grad_aux: Tensor,
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    main_state: Tensor,
    aux_state: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients by ``main`` and ``aux`` for the upstream gradients of their totals."""
    if not per_pixel:
        return _scaled(main_state, grad_main, main), _scaled(aux_state, grad_aux, aux)
    terms = Terms(weight, ignore_index, label_smoothing, False, align_corners)
    pixel_weights = [_weighted(grad_main, pixel_weight), _weighted(grad_aux, pixel_weight)]
    states = head_sums([main, aux], target, terms, pixel_weights, gradient=True).states
    return _scaled(states[0], None, main), _scaled(states[1], None, aux)


def _weighted(grad: Tensor, pixel_weight: Tensor | None) -> Tensor:
    """Σ g_p · loss_p is the sum of losses with g among the weights of the pixels."""
    return grad if pixel_weight is None else grad * pixel_weight.to(grad.dtype)


def _scaled(state: Tensor, grad: Tensor | None, logits: Tensor) -> Tensor:
    if state.shape != logits.shape:
        raise RuntimeError("the cross-entropy was computed without its gradient: call the operator with gradient=True")
    if grad is None:
        return state.to(logits.dtype)
    return torch.mul(state, grad, out=empty_state(logits, logits.dtype))
