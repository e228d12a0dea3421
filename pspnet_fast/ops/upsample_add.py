"""The sum of upsampled maps, in one pass: no map but the result has its size.

Columns are interpolated at low resolution, then rows of all levels are added into a row of the result; backward sums
rows first. Native kernels: csrc/cpu/upsample_add*.cpp, csrc/cuda/upsample_add*.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.geometry import size_pairs, upsample_adjoint
from pspnet_fast.layout import empty_levels, empty_map, format_of, is_channels_last
from pspnet_fast.ops.checks import check_level_sizes, check_levels, check_map, check_size, same_device
from pspnet_fast.ops.operator import Operator, save_map
from pspnet_fast.reference import Bin


def upsample_add(
    levels: Tensor,
    base: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    bins: Sequence[Bin],
    align_corners: bool = True,
    channels_last: bool = False,
) -> Tensor:
    """Upsample every level bilinearly and sum them: ``base + Σ interpolate(level, size)``.

    Args:
        levels: ``[B, C, Σhw]``, floating-point, packed as for :func:`pspnet_fast.pyramid_conv`, with any strides.
        base: ``[B, C, H, W]`` of the levels' dtype, or None.
        size: ``(H, W)`` of the result; may be left out where there is a base, which has that size.
        bins: the sides of square levels, or their sizes ``(h, w)``, in their order in ``levels``; 1 to 4096 each.
        align_corners: of the upsampling, as in ``torch.nn.functional.interpolate``.
        channels_last: the memory layout of the result without ``base``; with it, the result has the layout of that.

    Returns:
        ``[B, C, H, W]`` of the levels' dtype; sums are taken in float32 for half precision.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.

    Differentiable any number of times. Autocast leaves the dtypes alone.
    """
    sizes = check_level_sizes(bins)
    check_levels(levels, sizes)
    if base is not None:
        check_map("base", base)
        size = base.shape[2:] if size is None else size
    if size is None:
        raise ValueError("size must be given where base is None, as (height, width)")
    check_size(size)
    if base is not None:
        expected = (*levels.shape[:2], *size)
        if tuple(base.shape) != expected:
            raise ValueError(
                f"base must be {list(expected)} for levels of {tuple(levels.shape)}, not {list(base.shape)}"
            )
        same_device("base", base, "levels", levels)
        if base.dtype != levels.dtype:
            raise TypeError(f"base is {base.dtype} but levels {levels.dtype}; convert it with .to({levels.dtype})")
    flat = [n for pair in sizes for n in pair]
    output: Tensor = ADD(levels, base, size[0], size[1], flat, align_corners, channels_last)
    return output


def _define(levels: Tensor, base: Tensor | None, *options: Any) -> Tensor:
    height, width, sizes, align_corners, channels_last = options
    bins = size_pairs(sizes)
    y = reference.upsample_add(levels, base, size=(height, width), bins=bins, align_corners=align_corners)
    return y.contiguous(memory_format=torch.channels_last) if channels_last and base is None else y


def _compose(levels: Tensor, base: Tensor | None, *options: Any) -> Tensor:
    return _define(levels, base, *options).contiguous(memory_format=format_of(_is_last(base, options)))


def _is_last(base: Tensor | None, options: Sequence[Any]) -> bool:
    last: bool = options[-1]
    return last if base is None else is_channels_last(base)


def _fake(levels: Tensor, base: Tensor | None, *options: Any) -> Tensor:
    return empty_map(levels, levels.shape[1], options[0], options[1], _is_last(base, options))


def _compose_backward(grad: Tensor, sizes: list[int], align_corners: bool) -> Tensor:
    parts = [
        upsample_adjoint(reference.accumulation(grad), h, w, align_corners).flatten(2) for h, w in size_pairs(sizes)
    ]
    return _fake_backward(grad, sizes, align_corners).copy_(torch.cat(parts, dim=2))


def _fake_backward(grad: Tensor, sizes: list[int], align_corners: bool) -> Tensor:
    return empty_levels(grad, sum(h * w for h, w in size_pairs(sizes)))


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted_levels, wanted_base = ctx.needs_input_grad[:2]
    grad_levels = ADD_BACKWARD.like(ctx)(grad, *ctx.options[2:4]) if wanted_levels else None
    return grad_levels, grad if wanted_base else None


def _differentiate_again(ctx: Any, cotangent: Tensor) -> tuple[Tensor]:
    return (ADD.like(ctx)(cotangent, None, *ctx.shape[2:], *ctx.options, ctx.channels_last),)


ADD = Operator(
    "upsample_add",
    fake=_fake,
    definition=_define,
    composition=_compose,
    triton="upsample_add:upsample_add",
    gradient=_differentiate,
)
ADD_BACKWARD = Operator(
    "upsample_add_backward",
    fake=_fake_backward,
    composition=_compose_backward,
    triton="upsample_add:upsample_add_backward",
    save=save_map,
    gradient=_differentiate_again,
)
