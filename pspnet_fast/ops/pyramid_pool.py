"""Adaptive average pooling to every size of a pyramid in one pass (PSPNet's first step; Zhao et al. 2017, section 3.2).

The bin edges of all levels cut each axis into a few intervals, and the map into atoms. The kernels sum every atom once
and every bin from its atoms, so ``x`` is read once, not once a level; in backward the gradient is constant on an atom
and is written once. Native kernels: csrc/cpu/pyramid_pool*.cpp, csrc/cuda/pyramid_pool*.cu, triton/pyramid_pool.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.backend import select
from pspnet_fast.layout import is_channels_last
from pspnet_fast.ops._checks import check_bins, check_map
from pspnet_fast.ops._library import (
    overload,
    register,
    register_autocast,
    register_composition,
    register_triton,
    suffix,
)
from pspnet_fast.reference import DEFAULT_BINS


def pyramid_pool(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> Tensor:
    """Average-pool ``x`` to ``k x k`` for every ``k`` of ``bins``; equals ``F.adaptive_avg_pool2d`` for each.

    Args:
        x: ``[B, C, H, W]``, float32, float64, float16 or bfloat16 (sums are taken in float32 at least), in NCHW or
            channels_last memory; other layouts are copied. Any H and W, bins that overlap or repeat cells included.
        bins: the sides of the levels, in the order they are packed.

    Returns:
        ``[B, C, Σk²]`` of x's dtype: level after level, each row-major.

    Raises:
        ValueError: ``x`` is not a map, or ``bins`` are not positive integers.
        TypeError: ``x`` is not floating-point.
        BackendError: a forced backend cannot run on x's device.

    Differentiable twice (it is linear). Deterministic on every backend.
    """
    checked = check_bins(bins)
    check_map("x", x)
    backend = select("pyramid_pool", x.device.type)
    if backend == "reference":
        return reference.pyramid_pool(x, checked)
    output: Tensor = overload(f"pyramid_pool{suffix(backend)}")(x, checked)
    return output


def pyramid_pool_through(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> tuple[Tensor, Tensor]:
    """``x`` again and :func:`pyramid_pool` of it, for a consumer of both that makes a new gradient for the first.

    In backward the gradient of the pooled levels is added into the gradient that came for the ``x`` returned here, so
    that no second map of x's size is written and none is summed. That gradient must therefore be nobody else's: hand
    the ``x`` returned to :func:`pspnet_fast.pyramid_conv` and to nothing else. Arguments and errors as for
    :func:`pyramid_pool`.
    """
    checked = check_bins(bins)
    check_map("x", x)
    backend = select("pyramid_pool", x.device.type)
    # The definition's gradients may be views of one another, and a compiler plans its memory itself.
    if backend == "reference" or torch.compiler.is_compiling():
        return x, pyramid_pool(x, checked)
    through: tuple[Tensor, Tensor] = _PoolThrough.apply(x, checked, suffix(backend))
    return through


class _PoolThrough(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, bins: list[int], ending: str) -> tuple[Tensor, Tensor]:
        return x.view_as(x), overload(f"pyramid_pool{ending}")(x, bins)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.bins, ctx.ending = inputs
        ctx.size, ctx.channels_last = x.shape[-2:], is_channels_last(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_pooled: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad_pooled is None:
            return grad_x, None, None
        if grad_x is None or torch.is_grad_enabled() or not _is_dense(grad_x) or grad_x.dtype != grad_pooled.dtype:
            spread = overload(f"pyramid_pool_backward{ctx.ending}")(grad_pooled, *ctx.size, ctx.bins, ctx.channels_last)
            return spread if grad_x is None else grad_x + spread, None, None
        overload(f"pyramid_pool_backward_add{ctx.ending}")(grad_x, grad_pooled, ctx.bins)
        return grad_x, None, None


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _fake_forward(x: Tensor, bins: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], sum(k * k for k in bins))


def _fake_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (grad.shape[0], grad.shape[1], height, width), dtype=grad.dtype, device=grad.device, memory_format=format_
    )


def _compose_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    """The same gradient without a native kernel: each level is spread by two small products, cells x bins."""
    sums = reference.accumulation(grad)
    total = sums.new_zeros(grad.shape[0], grad.shape[1], height, width)
    for level in reference.unpack_levels(sums, bins):
        k = level.shape[-1]
        total += _membership(height, k, sums) @ level @ _membership(width, k, sums).mT
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    return total.to(grad.dtype).contiguous(memory_format=format_)


def _compose_backward_add(grad_x: Tensor, grad: Tensor, bins: list[int]) -> None:
    height, width = grad_x.shape[-2:]
    grad_x += _compose_backward(grad, height, width, bins, is_channels_last(grad_x))


def _membership(n: int, k: int, like: Tensor) -> Tensor:
    """``[n, k]``: 1 / (cells of bin i) where cell belongs to bin i, else 0."""
    bin_ = torch.arange(k, device=like.device)
    begin, end = bin_ * n // k, -((-(bin_ + 1) * n) // k)
    cell = torch.arange(n, device=like.device).unsqueeze(1)
    return ((cell >= begin) & (cell < end)).to(like.dtype) / (end - begin)


def _register_pair(ending: str) -> None:
    """Fakes and gradients of ``pyramid_pool<ending>``: its backward is an operator too, and each is the other's."""
    forward, backward = f"pyramid_pool{ending}", f"pyramid_pool_backward{ending}"

    def save_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.bins = inputs
        ctx.size, ctx.channels_last = x.shape[-2:], is_channels_last(x)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return overload(backward)(grad, *ctx.size, ctx.bins, ctx.channels_last), None

    def save_bins(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bins = inputs[3]

    def differentiate_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return overload(forward)(grad, ctx.bins), None, None, None, None

    register(forward, fake=_fake_forward, setup_context=save_input, backward=differentiate)
    register(backward, fake=_fake_backward, setup_context=save_bins, backward=differentiate_again)
    register(f"pyramid_pool_backward_add{ending}", fake=lambda grad_x, grad, bins: None)
    register_autocast(forward)


# Where the extension has no kernel for a device, the operator runs the definition.
register_composition("pyramid_pool", lambda x, bins: reference.pyramid_pool(x, bins))
register_composition("pyramid_pool_backward", _compose_backward)
register_composition("pyramid_pool_backward_add", _compose_backward_add)
_register_pair("")


def _triton_forward(x: Tensor, bins: list[int]) -> Tensor:
    from pspnet_fast.triton.pyramid_pool import pyramid_pool_forward

    return pyramid_pool_forward(x, bins)


def _triton_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    from pspnet_fast.triton.pyramid_pool import pyramid_pool_backward

    return pyramid_pool_backward(grad, height, width, bins, channels_last)


def _triton_backward_add(grad_x: Tensor, grad: Tensor, bins: list[int]) -> None:
    from pspnet_fast.triton.pyramid_pool import pyramid_pool_backward_add

    pyramid_pool_backward_add(grad_x, grad, bins)


register_triton("pyramid_pool", _triton_forward)
register_triton("pyramid_pool_backward", _triton_backward)
register_triton("pyramid_pool_backward_add", _triton_backward_add)
_register_pair("_triton")
