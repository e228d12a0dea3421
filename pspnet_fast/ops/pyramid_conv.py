"""The convolution after the pyramid, without the concatenation.

Upsampling is linear and so is the convolution, so with the weight W split by input channels into W_x and W_k,

    conv(cat(x, up(p_1), up(p_2), …); W) = conv(x; W_x) + Σ_k conv(up(p_k); W_k)

and with u_k the 1-D bilinear weights from k cells (zero in the padding) each level's term is separable,

    Q_k[o,dy,dx; b,i,j] = Σ_c W_k[o,c,dy,dx] · p_k[b,c,i,j]                    a product over channels, at k² positions
    R_k[b,o,h,(dx,j)]   = Σ_{dy,i} u_k(h + dy - 1, i) · Q_k[o,dy,dx; b,i,j]    rows interpolated
    y[b,o,h,w]         += Σ_{k,dx,j} u_k(w + dx - 1, j) · R_k[b,o,h,(dx,j)]    columns, all levels in one product

exactly, at any size. Neither the upsampled maps nor the concatenation exist, and backward keeps only x and the small
tensors: it is the transpose of the same three steps. Written in PyTorch operators, for every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.backend import select
from pspnet_fast.layout import is_channels_last, memory_format
from pspnet_fast.ops._checks import check_bins, check_dtype, check_levels, check_map, same_device
from pspnet_fast.ops._interpolation import tap_matrix
from pspnet_fast.ops._library import (
    overload,
    register,
    register_autocast,
    register_composition,
    second_gradient,
)
from pspnet_fast.reference import DEFAULT_BINS


def pyramid_conv(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bins: Sequence[int] = DEFAULT_BINS,
    align_corners: bool = True,
    x_first: bool = True,
) -> Tensor:
    """Convolve the concatenation of ``x`` and its upsampled pyramid levels: ``conv2d(pyramid_concat(x, levels))``.

    Args:
        x: ``[B, C, H, W]``, floating-point, NCHW or channels_last.
        levels: ``[B, Ck, Σk²]``, packed as :func:`pspnet_fast.pyramid_pool` packs them, of x's dtype.
        weight: ``[O, C + L·Ck, kh, kw]`` with odd kh and kw (1x1 or 3x3 in every known PSPNet); stride 1, dilation 1,
            zero padding ``(kh // 2, kw // 2)``. Input channels in the order of the concatenation.
        bias: ``[O]`` or None.
        bins: the sides of the levels, in their order in ``levels`` and in ``weight``.
        align_corners: of the upsampling, as in ``torch.nn.functional.interpolate``.
        x_first: whether x's channels come before the levels' (semseg) or after them.

    Returns:
        ``[B, O, H, W]``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.

    Differentiable twice. Under autocast it runs in the lower precision, as a convolution does.
    """
    checked = check_bins(bins)
    check_map("x", x)
    check_levels(x, levels, checked)
    _check_weight(x, levels, weight, bias, len(checked))
    if select("pyramid_conv", x.device.type) == "reference":
        return reference.pyramid_conv(
            x, levels, weight, bias, bins=checked, align_corners=align_corners, x_first=x_first
        )
    output: Tensor = overload("pyramid_conv")(x, levels, weight, bias, checked, align_corners, x_first)
    return output


def _check_weight(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, level_count: int) -> None:
    channels = x.shape[1] + level_count * levels.shape[1]
    if weight.dim() != 4 or weight.shape[1] != channels:
        raise ValueError(
            f"weight must be [O, {channels}, kh, kw] for x of {x.shape[1]} channels and {level_count} levels of "
            f"{levels.shape[1]}, not {tuple(weight.shape)}"
        )
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"weight must have odd kernel sides, so that padding keeps the size, not {weight.shape[2:]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], not {tuple(bias.shape)}")
    for name, tensor in (("levels", levels), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            same_device(name, tensor, "x", x)
            check_dtype(name, tensor, "x", x)


class _Plan(NamedTuple):
    """Where the parts of the weight lie, and the interpolation weights of rows and columns."""

    x_slice: slice
    level_slices: list[slice]
    rows: list[Tensor]  # per level [H, kh·k], over (dy, i)
    columns: Tensor  # [W, Σ kw·k], over (level, dx, j)


def _plan(x: Tensor, levels: Tensor, weight: Tensor, bins: list[int], align_corners: bool, x_first: bool) -> _Plan:
    channels, width = x.shape[1], levels.shape[1]
    start = channels if x_first else 0
    level_slices = [slice(start + i * width, start + (i + 1) * width) for i in range(len(bins))]
    x_slice = slice(0, channels) if x_first else slice(len(bins) * width, None)

    height, kernel = x.shape[2:], weight.shape[2:]
    rows, columns = (
        [tap_matrix(n, k, align_corners, taps, x.dtype, x.device).flatten(1) for k in bins]
        for n, taps in zip(height, kernel, strict=True)
    )
    return _Plan(x_slice, level_slices, rows, torch.cat(columns, dim=1))


def _taps_by_channels(weight: Tensor, level: slice) -> Tensor:
    """``[O·kh·kw, Ck]``: one level's weight with the channels innermost (a view where weight is channels_last)."""
    part = weight[:, level].permute(0, 2, 3, 1)
    return part.reshape(-1, part.shape[-1])


def _positions_by_channels(level: Tensor) -> Tensor:
    """``[B·k², Ck]`` from a level ``[B, Ck, k, k]``."""
    return level.permute(0, 2, 3, 1).reshape(-1, level.shape[1])


def _forward(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bins: list[int],
    align_corners: bool,
    x_first: bool,
) -> Tensor:
    plan = _plan(x, levels, weight, bins, align_corners, x_first)
    kernel = weight.shape[2:]
    y = torch.conv2d(x, weight[:, plan.x_slice], bias, padding=(kernel[0] // 2, kernel[1] // 2))
    if y.numel() == 0:
        return y
    batch, out_channels, height, width = y.shape
    channels_last = is_channels_last(y)

    row_terms = []
    for level, part, rows in zip(reference.unpack_levels(levels, bins), plan.level_slices, plan.rows, strict=True):
        k = level.shape[-1]
        q = _taps_by_channels(weight, part) @ _positions_by_channels(level).mT
        q = q.view(out_channels, *kernel, batch, k, k)
        if channels_last:  # [B, (dy, i), (dx, j)·O] -> [B, H, (dx, j), O]
            q = q.permute(3, 1, 4, 2, 5, 0).reshape(batch, kernel[0] * k, -1)
            row_terms.append((rows @ q).view(batch * height, kernel[1] * k, out_channels))
        else:  # [B·O, (dy, i), (dx, j)] -> [B·O, H, (dx, j)]
            q = q.permute(3, 0, 1, 4, 2, 5).reshape(batch * out_channels, kernel[0] * k, kernel[1] * k)
            row_terms.append(rows @ q)

    # Added into the convolution's own output, in its own layout: no second full-size tensor.
    if channels_last:
        image_rows = y.permute(0, 2, 3, 1).view(batch * height, width, out_channels)
        image_rows.baddbmm_(plan.columns.expand(batch * height, -1, -1), torch.cat(row_terms, dim=1))
    else:
        y.view(-1, width).addmm_(torch.cat(row_terms, dim=2).view(-1, plan.columns.shape[1]), plan.columns.mT)
    return y


def _row_gradients(grad: Tensor, plan: _Plan, bins: list[int], kernel: Sequence[int]) -> list[Tensor]:
    """One pass over ``grad [B, O, H, W]`` for all levels: per level the gradient of Q, ``[O·kh·kw, B·k²]``."""
    batch, out_channels, height, width = grad.shape
    channels_last = is_channels_last(grad)
    if channels_last:
        pixels = grad.permute(0, 2, 3, 1).reshape(batch * height, width, out_channels)
        summed = (plan.columns.mT @ pixels).view(batch, height, -1, out_channels)
    else:
        summed = (grad.reshape(-1, width) @ plan.columns).view(batch * out_channels, height, -1)

    gradients = []
    parts = summed.split([kernel[1] * k for k in bins], dim=2)
    for part, rows, k in zip(parts, plan.rows, bins, strict=True):
        if channels_last:
            q = (rows.mT @ part.reshape(batch, height, -1)).view(batch, kernel[0], k, kernel[1], k, out_channels)
            q = q.permute(5, 1, 3, 0, 2, 4)
        else:
            q = (rows.mT @ part).view(batch, out_channels, kernel[0], k, kernel[1], k).permute(1, 2, 4, 0, 3, 5)
        gradients.append(q.reshape(out_channels * kernel[0] * kernel[1], batch * k * k))
    return gradients


def _backward(
    grad: Tensor, x: Tensor, levels: Tensor, weight: Tensor, bins: list[int], align_corners: bool, x_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if grad.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(levels), torch.zeros_like(weight)
    plan = _plan(x, levels, weight, bins, align_corners, x_first)
    kernel = weight.shape[2:]
    padding = [kernel[0] // 2, kernel[1] // 2]
    grad_weight = torch.empty_like(weight)
    grad_x, grad_weight_x, _ = torch.ops.aten.convolution_backward(
        grad, x, weight[:, plan.x_slice], None, [1, 1], padding, [1, 1], False, [0, 0], 1, [True, True, False]
    )
    grad_weight[:, plan.x_slice] = grad_weight_x

    grad_levels = []
    unpacked = reference.unpack_levels(levels, bins)
    gradients = _row_gradients(grad, plan, bins, kernel)
    for level, part, grad_q in zip(unpacked, plan.level_slices, gradients, strict=True):
        batch, channels, k, _ = level.shape
        taps = (grad_q @ _positions_by_channels(level)).view(weight.shape[0], *kernel, channels)
        grad_weight[:, part] = taps.permute(0, 3, 1, 2)
        positions = grad_q.mT @ _taps_by_channels(weight, part)
        grad_levels.append(positions.view(batch, k * k, channels).mT)
    return grad_x.contiguous(memory_format=memory_format(x)), torch.cat(grad_levels, dim=2), grad_weight


def _fake_forward(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bins: list[int],
    align_corners: bool,
    x_first: bool,
) -> Tensor:
    # The convolution itself says which layout its backend will answer in.
    channels = x.shape[1]
    part = weight[:, :channels] if x_first else weight[:, weight.shape[1] - channels :]
    return torch.conv2d(x, part, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def _fake_backward(
    grad: Tensor, x: Tensor, levels: Tensor, weight: Tensor, bins: list[int], align_corners: bool, x_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    return grad_x, levels.new_empty(levels.shape), torch.empty_like(weight)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, levels, weight, _, ctx.bins, ctx.align_corners, ctx.x_first = inputs
    ctx.save_for_backward(x, levels, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = overload("pyramid_conv_backward")(grad, *ctx.saved_tensors, ctx.bins, ctx.align_corners, ctx.x_first)
    grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
    return *grads, grad_bias, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.bins, ctx.align_corners, ctx.x_first = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad, *inputs = ctx.saved_tensors

    def definition(x: Tensor, levels: Tensor, weight: Tensor) -> Tensor:
        return reference.pyramid_conv(
            x, levels, weight, bins=ctx.bins, align_corners=ctx.align_corners, x_first=ctx.x_first
        )

    return *second_gradient(definition, inputs, grad, cotangents), None, None, None


register_composition("pyramid_conv", _forward)
register_composition("pyramid_conv_backward", _backward)
register("pyramid_conv", fake=_fake_forward, setup_context=_save_forward, backward=_differentiate)
register("pyramid_conv_backward", fake=_fake_backward, setup_context=_save_backward, backward=_differentiate_again)
register_autocast("pyramid_conv", lower_precision=True)
