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
from pspnet_fast.geometry import bin_averages
from pspnet_fast.layout import empty_map, format_of, is_channels_last, is_dense
from pspnet_fast.ops.checks import check_bins, check_map, differentiable
from pspnet_fast.ops.operator import Autocast, Operator
from pspnet_fast.ops.ownership import holders, holders_of_owned
from pspnet_fast.reference import DEFAULT_BINS


def pyramid_pool(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> Tensor:
    """Average-pool ``x`` to ``k x k`` for every ``k`` of ``bins``; equals ``F.adaptive_avg_pool2d`` for each.

    Args:
        x: ``[B, C, H, W]``, float32, float64, float16 or bfloat16 (sums are taken in float32 at least), in NCHW or
            channels_last memory; other layouts are copied. Any H and W, bins that overlap or repeat pixels included.
        bins: the sides of the levels, in the order they are packed.

    Returns:
        ``[B, C, Σk²]`` of x's dtype: level after level, each row-major.

    Raises:
        ValueError: ``x`` is not a map, or ``bins`` are not positive integers.
        TypeError: ``x`` is not floating-point.
        BackendError: a forced backend cannot run on x's device.

    Differentiable twice (it is linear). Deterministic on every backend.
    """
    check_map("x", x)
    output: Tensor = POOL(x, check_bins(bins))
    return output


def pyramid_pool_through(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> tuple[Tensor, Tensor]:
    """``x`` again and :func:`pyramid_pool` of it, for a consumer of both that makes a new gradient for the first.

    In backward the gradient of the pooled levels is added into the gradient that came for the ``x`` returned here, so
    that no second map of x's size is written and none is summed. Where somebody else holds that gradient too, as a
    hook does that keeps it, it is copied first. Arguments and errors as for :func:`pyramid_pool`.
    """
    check_map("x", x)
    checked = check_bins(bins)
    backend = POOL.backend(x)
    # The definition's gradients may be views of one another, a compiler plans its memory itself, and a trace records no
    # Python function.
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if backend == "reference" or recorded or not differentiable(x):
        return x, POOL(x, checked)
    holders_of_owned()  # counted here, where no graph is being run
    through: tuple[Tensor, Tensor] = _PoolThrough.apply(x, checked, backend)
    return through


class _PoolThrough(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, bins: list[int], backend: str) -> tuple[Tensor, Tensor]:
        return x.view_as(x), POOL.run(backend, x, bins)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.bins, ctx.backend = inputs
        ctx.size, ctx.channels_last = x.shape[-2:], is_channels_last(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_pooled: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad_pooled is None:
            return grad_x, None, None
        if grad_x is None or torch.is_grad_enabled() or not is_dense(grad_x) or grad_x.dtype != grad_pooled.dtype:
            spread = POOL_BACKWARD.run(ctx.backend, grad_pooled, *ctx.size, ctx.bins, ctx.channels_last)
            return spread if grad_x is None else grad_x + spread, None, None
        if holders(grad_x) != holders_of_owned():
            grad_x = grad_x.clone()
        POOL_BACKWARD_ADD.run(ctx.backend, grad_x, grad_pooled, ctx.bins)
        return grad_x, None, None


def _fake_forward(x: Tensor, bins: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], sum(k * k for k in bins))


def _fake_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    return empty_map(grad, grad.shape[1], height, width, channels_last)


def _compose_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    """The same gradient without a native kernel: each level is spread by two small products, pixels x bins."""
    sums = reference.accumulation(grad)
    total = sums.new_zeros(grad.shape[0], grad.shape[1], height, width)
    rows, columns = (bin_averages(n, bins, sums.dtype, sums.device).split(bins, dim=1) for n in (height, width))
    for level, level_rows, level_columns in zip(reference.unpack_levels(sums, bins), rows, columns, strict=True):
        total += level_rows @ level @ level_columns.mT
    return total.to(grad.dtype).contiguous(memory_format=format_of(channels_last))


def _compose_backward_add(grad_x: Tensor, grad: Tensor, bins: list[int]) -> None:
    height, width = grad_x.shape[-2:]
    grad_x += _compose_backward(grad, height, width, bins, is_channels_last(grad_x))


def exported_pool(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Adaptive average pooling to every ``(h, w)`` of ``sizes`` as products, for other runtimes: [B, C, h, w] each."""
    (heights, rows), (widths, columns) = (
        (sides, bin_averages(n, sides, x.dtype, x.device))
        for n, sides in zip(x.shape[2:], zip(*sizes, strict=True), strict=True)
    )
    parts = zip(rows.split(heights, dim=1), (x @ columns).split(widths, dim=3), strict=True)
    return [level_rows.mT @ part for level_rows, part in parts]


def _export(x: Tensor, bins: list[int]) -> Tensor:
    return torch.cat([level.flatten(2) for level in exported_pool(x, [(k, k) for k in bins])], dim=2)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.bins = inputs
    ctx.size, ctx.channels_last = x.shape[-2:], is_channels_last(x)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (POOL_BACKWARD.like(ctx)(grad, *ctx.size, ctx.bins, ctx.channels_last),)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.bins = inputs[3]


def _differentiate_again(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (POOL.like(ctx)(grad, ctx.bins),)


POOL = Operator(
    "pyramid_pool",
    fake=_fake_forward,
    definition=lambda x, bins: reference.pyramid_pool(x, bins),
    composition=lambda x, bins: reference.pyramid_pool(x, bins),
    exported=_export,
    triton="pyramid_pool:pyramid_pool_forward",
    save=_save_forward,
    gradient=_differentiate,
    autocast=Autocast(),
)
POOL_BACKWARD = Operator(
    "pyramid_pool_backward",
    fake=_fake_backward,
    composition=_compose_backward,
    triton="pyramid_pool:pyramid_pool_backward",
    save=_save_backward,
    gradient=_differentiate_again,
)
POOL_BACKWARD_ADD = Operator(
    "pyramid_pool_backward_add",
    fake=lambda grad_x, grad, bins: None,
    composition=_compose_backward_add,
    triton="pyramid_pool:pyramid_pool_backward_add",
)
