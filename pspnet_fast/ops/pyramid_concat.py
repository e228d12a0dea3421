"""The concatenated map of a pyramid: x and its upsampled levels (for a next layer that is not a convolution)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.geometry import upsample_adjoint
from pspnet_fast.layout import empty_map, is_channels_last, memory_format
from pspnet_fast.ops.checks import check_bins, check_levels, check_map
from pspnet_fast.ops.operator import Operator, save_map
from pspnet_fast.reference import DEFAULT_BINS


def pyramid_concat(
    x: Tensor,
    levels: Tensor,
    *,
    bins: Sequence[int] = DEFAULT_BINS,
    align_corners: bool = True,
    x_first: bool = True,
) -> Tensor:
    """Upsample packed levels to the size of ``x`` and concatenate them with it.

    Args:
        x: ``[B, C, H, W]``, floating-point.
        levels: ``[B, Ck, Σk²]``, packed as :func:`pspnet_fast.pyramid_pool` packs them.
        bins: the sides of the levels, in their order in ``levels`` and in the result.
        align_corners, x_first: as for :func:`pspnet_fast.pyramid_conv`.

    Returns:
        ``[B, C + L·Ck, H, W]``, of the wider dtype of the two, in x's memory layout.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.

    Prefer :func:`pspnet_fast.pyramid_conv` where the next layer is a convolution: it never builds this map.
    """
    checked = check_bins(bins)
    check_map("x", x)
    check_levels(levels, checked, x)
    dtype = torch.promote_types(x.dtype, levels.dtype)
    x, levels = x.to(dtype), levels.to(dtype)
    output: Tensor = CONCAT(x, levels, checked, align_corners, x_first)
    return output


def _concat(x: Tensor, levels: Tensor, bins: list[int], align_corners: bool, x_first: bool) -> Tensor:
    merged = reference.pyramid_concat(x, levels, bins, align_corners, x_first)
    return merged.contiguous(memory_format=memory_format(x))


def _fake_concat(x: Tensor, levels: Tensor, bins: list[int], align_corners: bool, x_first: bool) -> Tensor:
    channels = x.shape[1] + len(bins) * levels.shape[1]
    return empty_map(x, channels, x.shape[2], x.shape[3], is_channels_last(x))


def _concat_backward(grad: Tensor, channels: int, bins: list[int], align_corners: bool, x_first: bool) -> Tensor:
    levels = grad[:, channels:] if x_first else grad[:, : grad.shape[1] - channels]
    grad_levels = [
        upsample_adjoint(reference.accumulation(part), k, k, align_corners).flatten(2)
        for part, k in zip(levels.chunk(len(bins), dim=1), bins, strict=True)
    ]
    return torch.cat(grad_levels, dim=2).to(grad.dtype)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    # x was copied unchanged: its gradient is a part of grad, and needs no kernel.
    channels, x_first = ctx.shape[1], ctx.options[2]
    first = 0 if x_first else grad.shape[1] - channels
    grad_x = grad.narrow(1, first, channels) if ctx.needs_input_grad[0] else None
    grad_levels = CONCAT_BACKWARD.like(ctx)(grad, channels, *ctx.options) if ctx.needs_input_grad[1] else None
    return grad_x, grad_levels


def _differentiate_again(ctx: Any, grad_levels: Tensor) -> tuple[Tensor]:
    channels, *options = ctx.options
    zeros = grad_levels.new_zeros(grad_levels.shape[0], channels, *ctx.shape[2:])
    return (CONCAT.like(ctx)(zeros, grad_levels, *options),)


CONCAT = Operator(
    "pyramid_concat",
    fake=_fake_concat,
    definition=reference.pyramid_concat,
    composition=_concat,
    composed=True,
    triton="pyramid_concat:pyramid_concat_forward",
    save=save_map,
    gradient=_differentiate,
)
CONCAT_BACKWARD = Operator(
    "pyramid_concat_backward",
    fake=lambda grad, channels, bins, align_corners, x_first: grad.new_empty(
        grad.shape[0], (grad.shape[1] - channels) // len(bins), sum(k * k for k in bins)
    ),
    composition=_concat_backward,
    triton="pyramid_concat:pyramid_concat_backward",
    save=save_map,
    gradient=_differentiate_again,
)
