"""The convolution over a pyramid, composed of PyTorch operators: for every device without kernels; parts of it serve
the Triton kernels, too.

Upsampling is linear and so is the convolution, so with the weight W split by input channels into W_x and W_k,

    conv(cat(x, up(p_1), up(p_2), …); W) = conv(x; W_x) + Σ_k conv(up(p_k); W_k)

and with u_k the 1-D bilinear weights from a level's rows or columns (zero in the padding) its term is separable,

    Q_k[o,dy,dx; b,i,j] = Σ_c W_k[o,c,dy,dx] · p_k[b,c,i,j]                    a product over channels, at its positions
    R_k[b,o,h,(dx,j)]   = Σ_{dy,i} u_k(h + dy - 1, i) · Q_k[o,dy,dx; b,i,j]    rows interpolated
    y[b,o,h,w]         += Σ_{k,dx,j} u_k(w + dx - 1, j) · R_k[b,o,h,(dx,j)]    columns, all levels in one product

exactly, at any size. Neither the upsampled maps nor the concatenation exist, and backward keeps only x and the small
tensors: it is the transpose of the same three steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.geometry import exported_tap_matrices, size_pairs, tap_matrix
from pspnet_fast.layout import is_channels_last, memory_format
from pspnet_fast.reference import NormStatistics


class WeightParts(NamedTuple):
    """Where the input channels of the concatenation lie in the weight."""

    x: slice
    levels: list[slice]


def weight_parts(x: Tensor, levels: Tensor, level_count: int, x_first: bool) -> WeightParts:
    """The slices of ``weight [O, C + L·Ck, kh, kw]`` along its input channels."""
    channels, width = x.shape[1], levels.shape[1]
    start = channels if x_first else 0
    level_slices = [slice(start + i * width, start + (i + 1) * width) for i in range(level_count)]
    return WeightParts(slice(0, channels) if x_first else slice(level_count * width, None), level_slices)


def convolve_x(x: Tensor, weight: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    """The convolution's share of ``x`` itself, in a layout of its own choice."""
    if x.shape[1] == 0:  # PyTorch's convolution over no channels gives no channels
        y = x.new_zeros(x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
        return y if bias is None else y.add_(bias.view(-1, 1, 1))
    return torch.conv2d(x, weight[:, part], bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def convolve_x_backward(
    grad: Tensor, x: Tensor, weight: Tensor, part: slice, mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`convolve_x` by ``x``, in x's layout, and by ``weight``, of which ``part`` is written.

    ``mask`` is that of ``pyramid_conv_backward``; what it does not select is an empty tensor.
    """
    grad_x, grad_weight = x.new_empty(0), torch.empty_like(weight) if mask[2] else weight.new_empty(0)
    if x.shape[1] == 0:
        return torch.zeros_like(x) if mask[0] else grad_x, grad_weight
    if mask[0] or mask[2]:
        padding = [weight.shape[2] // 2, weight.shape[3] // 2]
        found, found_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight[:, part], None, [1, 1], padding, [1, 1], False, [0, 0], 1, [mask[0], mask[2], False]
        )
        if mask[0]:
            grad_x = found.contiguous(memory_format=memory_format(x))
        if mask[2]:
            grad_weight[:, part] = found_weight
    return grad_x, grad_weight


def fold_norm(weight: Tensor, bias: Tensor | None, norm: NormStatistics) -> tuple[Tensor, Tensor]:
    """Weight ``[O, …]`` and bias ``[O]`` of a convolution that gives what ``norm`` makes of the result of this one."""
    scale = norm.gamma / (norm.var + norm.eps).sqrt()
    centre = norm.mean if bias is None else norm.mean - bias
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), norm.beta - centre * scale


def forward(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """``pyramid_conv`` or ``pyramid_conv_norm_relu`` as an operator.

    ``options`` are ``sizes, align_corners, x_first``, behind those of :class:`pspnet_fast.ops.NormStatistics` if any.
    """
    *norm, sizes, align_corners, x_first = options
    bins = size_pairs(sizes)
    parts = weight_parts(x, levels, len(bins), x_first)
    y = convolve_x(x, weight, bias, parts.x)
    if y.numel() > 0:
        rows, columns = _taps(x, bins, weight.shape[2:], align_corners)
        batch, out_channels, height, width = y.shape
        channels_last = is_channels_last(y)
        terms = _row_terms(levels, weight, parts.levels, rows, bins, channels_last)

        # Added into the convolution's own output, in its own layout: no second full-size tensor.
        if channels_last:
            image_rows = y.permute(0, 2, 3, 1).view(batch * height, width, out_channels)
            image_rows.baddbmm_(columns.expand(batch * height, -1, -1), terms)
        else:
            y.view(-1, width).addmm_(terms.view(-1, columns.shape[1]), columns.mT)
    if norm:
        mean, var, gamma, beta, eps = norm
        y = torch.relu_(torch.batch_norm(y, gamma, beta, mean, var, False, 0.0, eps, False))
    return y


def export(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """:func:`forward` as an export records it: at any size of x, and nothing is written to."""
    *norm, sizes, align_corners, x_first = options
    if norm:
        weight, bias = fold_norm(weight, bias, NormStatistics(*norm))
    bins = size_pairs(sizes)
    parts = weight_parts(x, levels, len(bins), x_first)
    y = convolve_x(x, weight, bias, parts.x)
    rows, columns = _taps(x, bins, weight.shape[2:], align_corners, exported=True)
    terms = _row_terms(levels, weight, parts.levels, rows, bins, channels_last=False)
    rows_of_pixels = y.reshape(-1, y.shape[3])
    y = torch.addmm(rows_of_pixels, terms.reshape(-1, columns.shape[1]), columns.mT).view(y.shape)
    return y.relu() if norm else y


def _row_terms(
    levels: Tensor,
    weight: Tensor,
    parts: Sequence[slice],
    rows: Sequence[Tensor],
    bins: list[tuple[int, int]],
    channels_last: bool,
) -> Tensor:
    """R of all levels: ``[B·H, Σ kw·w, O]`` or, in NCHW, ``[B·O, H, Σ kw·w]``."""
    out_channels, _, *kernel = weight.shape
    terms = []
    for level, part, row_taps in zip(reference.unpack_levels(levels, bins), parts, rows, strict=True):
        batch, _, h, w = level.shape
        q = _taps_by_channels(weight, part) @ _positions_by_channels(level).mT
        q = q.view(out_channels, *kernel, batch, h, w)
        if channels_last:  # [B, (dy, i), (dx, j)·O] -> [B, H, (dx, j), O]
            q = q.permute(3, 1, 4, 2, 5, 0).reshape(batch, kernel[0] * h, -1)
            terms.append((row_taps @ q).view(batch * row_taps.shape[0], kernel[1] * w, out_channels))
        else:  # [B·O, (dy, i), (dx, j)] -> [B·O, H, (dx, j)]
            q = q.permute(3, 0, 1, 4, 2, 5).reshape(batch * out_channels, kernel[0] * h, kernel[1] * w)
            terms.append(row_taps @ q)
    return torch.cat(terms, dim=1 if channels_last else 2)


def backward(grad: Tensor, x: Tensor, levels: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, ...]:
    """``pyramid_conv_backward`` as an operator: the gradients by x, levels and weight that ``mask`` selects.

    The others are empty tensors. ``options`` are ``sizes, align_corners, x_first, mask``.
    """
    sizes, align_corners, x_first, mask = options
    if grad.numel() == 0:
        return tuple(
            torch.zeros_like(t) if wanted else t.new_empty(0)
            for t, wanted in zip((x, levels, weight), mask, strict=True)
        )
    bins = size_pairs(sizes)
    parts = weight_parts(x, levels, len(bins), x_first)
    grad_x, grad_weight = convolve_x_backward(grad, x, weight, parts.x, mask)
    grad_levels = []
    if mask[1] or mask[2]:
        kernel = weight.shape[2:]
        gradients = _row_gradients(grad, _taps(x, bins, kernel, align_corners), bins, kernel)
        for level, part, grad_q in zip(reference.unpack_levels(levels, bins), parts.levels, gradients, strict=True):
            batch, channels, h, w = level.shape
            if mask[2]:
                taps = (grad_q @ _positions_by_channels(level)).view(weight.shape[0], *kernel, channels)
                grad_weight[:, part] = taps.permute(0, 3, 1, 2)
            if mask[1]:
                positions = grad_q.mT @ _taps_by_channels(weight, part)
                grad_levels.append(positions.view(batch, h * w, channels).mT)
    return grad_x, torch.cat(grad_levels, dim=2) if mask[1] else levels.new_empty(0), grad_weight


def _taps(
    x: Tensor, bins: list[tuple[int, int]], kernel: Sequence[int], align_corners: bool, exported: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Interpolation weights: rows ``[H, kh·h]`` over (dy, i) per level, columns ``[W, Σ kw·w]`` for all levels."""
    axes = []
    for n, taps, sides in zip(x.shape[2:], kernel, zip(*bins, strict=True), strict=True):
        options = align_corners, taps, x.dtype, x.device
        found = exported_tap_matrices(n, sides, *options) if exported else [tap_matrix(n, k, *options) for k in sides]
        axes.append([matrix.flatten(1) for matrix in found])
    return axes[0], torch.cat(axes[1], dim=1)


def _taps_by_channels(weight: Tensor, level: slice) -> Tensor:
    """``[O·kh·kw, Ck]``: one level's weight with the channels innermost (a view where weight is channels_last)."""
    part = weight[:, level].permute(0, 2, 3, 1)
    return part.reshape(-1, part.shape[-1])


def _positions_by_channels(level: Tensor) -> Tensor:
    """``[B·h·w, Ck]`` from a level ``[B, Ck, h, w]``."""
    return level.permute(0, 2, 3, 1).reshape(-1, level.shape[1])


def _row_gradients(
    grad: Tensor, taps: tuple[list[Tensor], Tensor], bins: list[tuple[int, int]], kernel: Sequence[int]
) -> list[Tensor]:
    """One pass over ``grad [B, O, H, W]`` for all levels: per level the gradient of Q, ``[O·kh·kw, B·h·w]``."""
    rows, columns = taps
    batch, out_channels, height, width = grad.shape
    channels_last = is_channels_last(grad)
    if channels_last:
        pixels = grad.permute(0, 2, 3, 1).reshape(batch * height, width, out_channels)
        summed = (columns.mT @ pixels).view(batch, height, -1, out_channels)
    else:
        summed = (grad.reshape(-1, width) @ columns).view(batch * out_channels, height, -1)

    gradients = []
    parts = summed.split([kernel[1] * w for _, w in bins], dim=2)
    for part, row_taps, (h, w) in zip(parts, rows, bins, strict=True):
        if channels_last:
            q = (row_taps.mT @ part.reshape(batch, height, -1)).view(batch, kernel[0], h, kernel[1], w, out_channels)
            q = q.permute(5, 1, 3, 0, 2, 4)
        else:
            q = (row_taps.mT @ part).view(batch, out_channels, kernel[0], h, kernel[1], w).permute(1, 2, 4, 0, 3, 5)
        gradients.append(q.reshape(out_channels * kernel[0] * kernel[1], batch * h * w))
    return gradients
