"""The concatenated map of a pyramid in Triton: written once, whatever its layout; its gradient gathered bin by bin.

    forward    y[:, x's channels] = x                  y[:, level's channels] = bilinear in four bins of the level
    backward   v[w, c] = Σ_h u(h, i) g[c, h, w]        grad[c, i, j] = Σ_w u(w, j) v[w, c]        for a line i of bins

with u the weights of upsampling. Each bin's sum has one owner and a fixed order: no atomics, the same bits every run.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pspnet_fast.layout import is_channels_last, memory_format
from pspnet_fast.triton.bilinear import any_special, interpolate_level
from pspnet_fast.triton.pyramid_taps import PyramidTaps, pyramid_taps

# Columns and channels of a tile: along memory as far as a warp reads, across it as far as registers go.
NCHW_TILE, NHWC_TILE = (64, 4), (4, 128)
NCHW_GRAD_TILE, NHWC_GRAD_TILE = (32, 16), (16, 32)


@triton.jit(do_not_specialize=["channels", "level_channels", "level_count", "x_first", "height", "width"])
def pyramid_concat_fwd_kernel(
    x,  # [B, C, H, W], by its strides
    levels,  # [B, Ck, packed_bins], by its strides
    y,  # [B, C + L·Ck, H, W], NCHW or channels_last
    level_table,  # the tables, see PyramidTaps
    row_cell,
    row_t,
    column_cell,
    column_t,
    tile_edge,
    channels,
    level_channels,
    level_count,
    x_first,
    height,
    width,
    x_stride_b,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    level_stride_b,
    level_stride_c,
    level_stride_bin,
    stride_c,
    stride_w,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # 1. A tile of rows and columns, and a block of channels of x or of one level.
    x_blocks, level_blocks = tl.cdiv(channels, CHANNELS), tl.cdiv(level_channels, CHANNELS)
    blocks = x_blocks + level_count * level_blocks
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    column_blocks = tl.cdiv(width, COLUMNS)
    image, row_tile = tl.program_id(1).to(tl.int64), tile // column_blocks
    first, end = tl.load(tile_edge + row_tile), tl.load(tile_edge + row_tile + 1)
    row = first + tl.arange(0, ROWS)[:, None, None]
    column = (tile % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :, None]
    lane = tl.arange(0, CHANNELS)[None, None, :]

    # 2. Its values.
    if block < x_blocks:
        channel = block * CHANNELS + lane
        count, offset = channels, (1 - x_first) * level_count * level_channels
        source = x + image * x_stride_b + row.to(tl.int64) * x_stride_h + column.to(tl.int64) * x_stride_w
        inside = (row < end) & (column < width) & (channel < channels)
        value = tl.load(source + channel.to(tl.int64) * x_stride_c, mask=inside, other=0.0).to(y.dtype.element_ty)
    else:
        level = (block - x_blocks) // level_blocks
        channel = ((block - x_blocks) % level_blocks) * CHANNELS + lane
        count, offset = level_channels, x_first * channels + level * level_channels
        low_height, low_width = tl.load(level_table + level), tl.load(level_table + level_count + level)
        bin = tl.load(level_table + 2 * level_count + level)
        known = tl.minimum(channel, level_channels - 1).to(tl.int64)
        bins = levels + image * level_stride_b + known * level_stride_c + bin * level_stride_bin
        value = interpolate_level(
            bins, level_stride_bin, low_height, low_width, row_cell + level * height, row_t + level * height,
            column_cell + level * width, column_t + level * width, first, row, end, column, height, width,
        ).to(y.dtype.element_ty)  # fmt: skip

    # 3. Both layouts are dense: a row is `width` pixels.
    pixel = row.to(tl.int64) * width + column
    target = y + image * (channels + level_count * level_channels) * height * width
    target += (offset + channel).to(tl.int64) * stride_c + pixel * stride_w
    tl.store(target, value, mask=(row < end) & (column < width) & (channel < count))


@triton.jit(do_not_specialize=["first_channel", "level_channels", "level_count", "lines", "packed_bins", "width"])
def pyramid_concat_bwd_kernel(
    grad,  # [B, C + L·Ck, H, W], by its strides
    grad_levels,  # [B, Ck, packed_bins]
    level_table,
    line_table,  # see PyramidTaps
    line_span,
    row_taps,
    column_taps,
    column_reads,
    first_channel,
    level_channels,
    level_count,
    lines,
    packed_bins,
    width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,  # at least the longest line of bins
):
    line, image = tl.program_id(0) % lines, tl.program_id(1).to(tl.int64)
    channel = (tl.program_id(0) // lines) * CHANNELS + tl.arange(0, CHANNELS)
    level, i = tl.load(line_table + line), tl.load(line_table + lines + line)
    low_width, first_bin = tl.load(level_table + level_count + level), tl.load(level_table + 2 * level_count + level)
    first_column = tl.load(level_table + 3 * level_count + level)
    begin, end = tl.load(line_span + line), tl.load(line_span + lines + line)
    j = tl.arange(0, SIDE)

    dtype = row_taps.dtype.element_ty
    total = tl.zeros([SIDE, CHANNELS], dtype=dtype)
    source = grad + image * stride_b + begin.to(tl.int64) * stride_h
    source += (first_channel + level * level_channels + channel).to(tl.int64)[None, :] * stride_c
    for left in range(0, width, COLUMNS):
        # 1. Down the rows that read this line.
        column = left + tl.arange(0, COLUMNS)
        mask = (column < width)[:, None] & (channel < level_channels)[None, :]
        down = tl.zeros([COLUMNS, CHANNELS], dtype=dtype)
        pixel = source + column.to(tl.int64)[:, None] * stride_w
        for row in range(begin, end):
            down += tl.load(row_taps + row * lines + line) * tl.load(pixel, mask=mask, other=0.0).to(dtype)
            pixel += stride_h
        # 2. Along the columns, for every bin of the line.
        weights = column_taps + column[None, :] * lines + (first_column + j)[:, None]
        u = tl.load(weights, mask=(j < low_width)[:, None] & (column < width)[None, :], other=0.0)
        total = tl.dot(u, down, total, input_precision="ieee", out_dtype=dtype)
    if any_special(total):
        # 3. Again, over what reads each bin alone.
        total = tl.zeros([SIDE, CHANNELS], dtype=dtype)
        for w in range(0, width):
            down = tl.zeros([1, CHANNELS], dtype=dtype)
            pixel = source + w * stride_w
            for row in range(begin, end):
                g = tl.load(pixel, mask=(channel < level_channels)[None, :], other=0.0).to(dtype)
                down += tl.load(row_taps + row * lines + line) * g
                pixel += stride_h
            entry = w * lines + (first_column + j)[:, None]
            u = tl.load(column_taps + entry, mask=(j < low_width)[:, None], other=0.0)
            read = tl.load(column_reads + entry, mask=(j < low_width)[:, None], other=0)
            total += tl.where(read != 0, u * down, 0.0)
    target = grad_levels + (image * level_channels + channel)[None, :] * packed_bins
    target += (first_bin + i * low_width + j)[:, None]
    tl.store(target, total, mask=(j < low_width)[:, None] & (channel < level_channels)[None, :])


def pyramid_concat_forward(
    x: Tensor, levels: Tensor, bins: Sequence[int], align_corners: bool, x_first: bool
) -> Tensor:
    """``x [B, C, H, W]`` and ``levels [B, Ck, Σk²]`` upsampled, concatenated over channels, in x's layout."""
    batch, channels, height, width = x.shape
    level_channels = levels.shape[1]
    shape = (batch, channels + len(bins) * level_channels, height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    if y.numel() == 0:
        return y

    channels_last = is_channels_last(x)
    if channels_last:
        levels = levels.mT.contiguous().mT  # small, and read along the channels
    taps = _taps(x, bins, align_corners)
    columns, lanes = NHWC_TILE if channels_last else NCHW_TILE
    tiles = {
        "COLUMNS": min(columns, triton.next_power_of_2(width)),
        "CHANNELS": min(lanes, triton.next_power_of_2(max(channels, level_channels))),
    }
    blocks = triton.cdiv(channels, tiles["CHANNELS"]) + len(bins) * triton.cdiv(level_channels, tiles["CHANNELS"])
    strides = (1, shape[1]) if channels_last else (height * width, 1)
    with torch.cuda.device_of(x):
        pyramid_concat_fwd_kernel[blocks * taps.tiles * triton.cdiv(width, tiles["COLUMNS"]), batch](
            x, levels, y, taps.level, taps.row_cell, taps.row_t, taps.column_cell, taps.column_t, taps.tile_edge,
            channels, level_channels, len(bins), int(x_first), height, width, *x.stride(), *levels.stride(), *strides,
            ROWS=taps.tile_rows, **tiles,
        )  # fmt: skip
    return y


def pyramid_concat_backward(
    grad: Tensor, channels: int, bins: Sequence[int], align_corners: bool, x_first: bool
) -> Tensor:
    """The gradient by the levels, ``[B, Ck, Σk²]``, of ``grad [B, channels + L·Ck, H, W]`` with any strides."""
    batch, merged, _, width = grad.shape
    level_channels = (merged - channels) // len(bins)
    packed_bins, lines = sum(k * k for k in bins), sum(bins)
    grad_levels = grad.new_empty(batch, level_channels, packed_bins)
    if grad_levels.numel() == 0:
        return grad_levels

    taps = _taps(grad, bins, align_corners)
    columns, lanes = NHWC_GRAD_TILE if grad.stride(1) == 1 else NCHW_GRAD_TILE
    with torch.cuda.device_of(grad):
        pyramid_concat_bwd_kernel[lines * triton.cdiv(level_channels, lanes), batch](
            grad, grad_levels, taps.level, taps.line, taps.line_span, taps.row_taps, taps.column_taps,
            taps.column_reads,
            channels if x_first else 0, level_channels, len(bins), lines, packed_bins, width, *grad.stride(),
            COLUMNS=columns, CHANNELS=lanes, SIDE=max(16, triton.next_power_of_2(taps.sides[1])),
        )  # fmt: skip
    return grad_levels


def _taps(x: Tensor, bins: Sequence[int], align_corners: bool) -> PyramidTaps:
    arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
    sizes = tuple((k, k) for k in bins)
    return pyramid_taps(x.shape[2], x.shape[3], sizes, (1, 1), align_corners, arithmetic, x.device)
