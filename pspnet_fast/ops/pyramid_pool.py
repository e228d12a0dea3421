"""Adaptive average pooling to every size of a pyramid in one pass (PSPNet's first step; Zhao et al. 2017, section 3.2).

The bin edges of all levels cut each axis into a few intervals, and the map into atoms. The kernels sum every atom once
and every bin from its atoms, so ``x`` is read once, not once a level; in backward the gradient is constant on an atom
and is written once. Native kernels: csrc/cpu/pyramid_pool*.cpp, csrc/cuda/pyramid_pool.cu, triton/pyramid_pool.py.
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
    register_autocast(forward)


# Where the extension has no kernel for a device, the operator runs the definition.
register_composition("pyramid_pool", lambda x, bins: reference.pyramid_pool(x, bins))
register_composition("pyramid_pool_backward", _compose_backward)
_register_pair("")


def _triton_forward(x: Tensor, bins: list[int]) -> Tensor:
    from pspnet_fast.triton.pyramid_pool import pyramid_pool_forward

    return pyramid_pool_forward(x, bins)


def _triton_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    from pspnet_fast.triton.pyramid_pool import pyramid_pool_backward

    return pyramid_pool_backward(grad, height, width, bins, channels_last)


register_triton("pyramid_pool", _triton_forward)
register_triton("pyramid_pool_backward", _triton_backward)
_register_pair("_triton")
