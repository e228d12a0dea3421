"""The concatenated map of a pyramid: x and its upsampled levels (for a next layer that is not a convolution)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.backend import select
from pspnet_fast.layout import memory_format
from pspnet_fast.ops._checks import check_bins, check_levels, check_map
from pspnet_fast.ops._interpolation import upsample_adjoint
from pspnet_fast.ops._library import overload, register, register_autocast, register_composition
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
        align_corners: as in ``torch.nn.functional.interpolate(mode="bilinear")``.
        x_first: whether x comes before the levels (semseg, mmsegmentation) or after them
            (segmentation_models.pytorch).

    Returns:
        ``[B, C + L·Ck, H, W]``, of the wider dtype of the two, in x's memory layout.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.

    Prefer :func:`pspnet_fast.pyramid_conv` where the next layer is a convolution: it never builds this map.
    """
    checked = check_bins(bins)
    check_map("x", x)
    check_levels(x, levels, checked)
    dtype = torch.promote_types(x.dtype, levels.dtype)
    x, levels = x.to(dtype), levels.to(dtype)
    if select("pyramid_concat", x.device.type) == "reference":
        return reference.pyramid_concat(x, levels, bins=checked, align_corners=align_corners, x_first=x_first)
    output: Tensor = overload("pyramid_concat")(x, levels, checked, align_corners, x_first)
    return output


def _concat(x: Tensor, levels: Tensor, bins: list[int], align_corners: bool, x_first: bool) -> Tensor:
    output = reference.pyramid_concat(x, levels, bins=bins, align_corners=align_corners, x_first=x_first)
    return output.contiguous(memory_format=memory_format(x))


def _fake_concat(x: Tensor, levels: Tensor, bins: list[int], align_corners: bool, x_first: bool) -> Tensor:
    channels = x.shape[1] + len(bins) * levels.shape[1]
    return torch.empty(
        (x.shape[0], channels, x.shape[2], x.shape[3]),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format(x),
    )


def _concat_backward(
    grad: Tensor, channels: int, bins: list[int], align_corners: bool, x_first: bool
) -> tuple[Tensor, Tensor]:
    width = (grad.shape[1] - channels) // len(bins)
    parts = list(grad.split([channels, *[width] * len(bins)] if x_first else [*[width] * len(bins), channels], dim=1))
    grad_x = parts.pop(0 if x_first else -1)
    grad_levels = [
        upsample_adjoint(reference.accumulation(part), k, k, align_corners).flatten(2)
        for part, k in zip(parts, bins, strict=True)
    ]
    return grad_x.contiguous(memory_format=memory_format(grad)), torch.cat(grad_levels, dim=2).to(grad.dtype)


def _fake_concat_backward(
    grad: Tensor, channels: int, bins: list[int], align_corners: bool, x_first: bool
) -> tuple[Tensor, Tensor]:
    batch, total, height, width = grad.shape
    level_channels = (total - channels) // len(bins)
    return (
        torch.empty(
            (batch, channels, height, width),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=memory_format(grad),
        ),
        grad.new_empty(batch, level_channels, sum(k * k for k in bins)),
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.bins, ctx.align_corners, ctx.x_first = inputs
    ctx.channels = x.shape[1]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = overload("pyramid_concat_backward")(grad, ctx.channels, ctx.bins, ctx.align_corners, ctx.x_first)
    return *grads, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, ctx.bins, ctx.align_corners, ctx.x_first = inputs


def _differentiate_again(ctx: Any, grad_x: Tensor, grad_levels: Tensor) -> tuple[Tensor | None, ...]:
    twice = overload("pyramid_concat")(grad_x, grad_levels, ctx.bins, ctx.align_corners, ctx.x_first)
    return twice, None, None, None, None


register_composition("pyramid_concat", _concat)
register_composition("pyramid_concat_backward", _concat_backward)
register("pyramid_concat", fake=_fake_concat, setup_context=_save_forward, backward=_differentiate)
register(
    "pyramid_concat_backward",
    fake=_fake_concat_backward,
    setup_context=_save_backward,
    backward=_differentiate_again,
)
register_autocast("pyramid_concat")
