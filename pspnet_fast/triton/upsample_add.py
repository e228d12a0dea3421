"""Sums of upsampled maps in Triton: written once, whatever their layout; the gradient gathered bin by bin.

    forward    y = base + Σ bilinear in four bins of each level
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

from pspnet_fast.geometry import size_pairs
from pspnet_fast.layout import empty_levels, empty_map, format_of, is_channels_last
from pspnet_fast.triton.bilinear import any_special, interpolate_level, second_node
from pspnet_fast.triton.upsample_taps import UpsampleTaps, upsample_taps

# Columns and channels of a tile: along memory as far as a warp reads, across it as far as registers go.
NCHW_TILE, NHWC_TILE = (64, 4), (4, 128)
NCHW_GRAD_TILE, NHWC_GRAD_TILE = (32, 16), (16, 32)
BINS = 32  # of a line, for one program of backward


@triton.jit(do_not_specialize=["channels", "level_count", "height", "width"])
def upsample_add_fwd_kernel(
    levels,  # [B, C, packed_bins], by its strides
    base,  # of y's shape and layout, where ADD says so
    y,  # [B, C, H, W], NCHW or channels_last
    level_table,  # the tables, see UpsampleTaps
    row_cell,
    row_t,
    column_cell,
    column_t,
    tile_edge,
    channels,
    level_count,
    height,
    width,
    level_stride_b,
    level_stride_c,
    level_stride_bin,
    stride_c,
    stride_w,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    column_blocks = tl.cdiv(width, COLUMNS)
    image, row_tile = tl.program_id(1).to(tl.int64), tile // column_blocks
    first, end = tl.load(tile_edge + row_tile), tl.load(tile_edge + row_tile + 1)
    row = first + tl.arange(0, ROWS)[:, None, None]
    column = (tile % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :, None]
    channel = block * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]

    # Both layouts are dense: a row is `width` pixels.
    offset = (image * channels * height * width) + channel.to(tl.int64) * stride_c
    offset += (row.to(tl.int64) * width + column) * stride_w
    inside = (row < end) & (column < width) & (channel < channels)
    if ADD:
        total = tl.load(base + offset, mask=inside, other=0.0).to(row_t.dtype.element_ty)
    else:
        total = tl.zeros([ROWS, COLUMNS, CHANNELS], dtype=row_t.dtype.element_ty)
    known = tl.minimum(channel, channels - 1).to(tl.int64)
    of_channel = levels + image * level_stride_b + known * level_stride_c
    for level in range(level_count):
        low_height, low_width = tl.load(level_table + level), tl.load(level_table + level_count + level)
        first_bin = tl.load(level_table + 2 * level_count + level)
        total += interpolate_level(
            of_channel + first_bin.to(tl.int64) * level_stride_bin, level_stride_bin, low_height, low_width,
            row_cell + level * height, row_t + level * height, column_cell + level * width, column_t + level * width,
            first, row, end, column, height, width,
        )  # fmt: skip
    tl.store(y + offset, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sum_down(pixel, mask, stride_h, begin, end, cell, t, line, low_height, height):
    """What the rows that read a line give to it: one sum for each of ``pixel``, which point into the first of them."""
    total = tl.zeros(pixel.shape, dtype=t.dtype.element_ty)
    for row in range(begin, end):
        first, share = tl.load(cell + row), tl.load(t + row)
        g = tl.load(pixel, mask=mask, other=0.0).to(share.dtype)
        # Where both are this line both count, a weight of 0 too, which makes NaN of an infinity.
        total += tl.where(first == line, (1 - share) * g, 0.0)
        total += tl.where(second_node(first, low_height, height) == line, share * g, 0.0)
        pixel += stride_h
    return total


@triton.jit(do_not_specialize=["channels", "level_count", "lines", "columns", "bin_blocks", "height", "width"])
def upsample_add_bwd_kernel(
    grad,  # [B, C, H, W], by its strides
    grad_levels,  # [B, C, packed_bins], by its strides
    level_table,  # the tables, see UpsampleTaps
    line_table,
    column_span,
    row_cell,
    row_t,
    column_cell,
    column_t,
    channels,
    level_count,
    lines,
    columns,  # Σw
    bin_blocks,
    height,
    width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    level_stride_b,
    level_stride_c,
    level_stride_bin,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    line, image = tl.program_id(0) % lines, tl.program_id(1).to(tl.int64)
    rest = tl.program_id(0) // lines
    j = (rest % bin_blocks) * BINS + tl.arange(0, BINS)[:, None]
    channel = (rest // bin_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    level, i = tl.load(line_table + line), tl.load(line_table + lines + line)
    begin, end = tl.load(line_table + 2 * lines + line), tl.load(line_table + 3 * lines + line)
    low_height, low_width = tl.load(level_table + level), tl.load(level_table + level_count + level)
    first_bin = tl.load(level_table + 2 * level_count + level)
    first_column = tl.load(level_table + 3 * level_count + level)
    own_cell, own_t = row_cell + level * height, row_t + level * height
    near_cell, near_t = column_cell + level * width, column_t + level * width
    known = channel < channels
    source = grad + image * stride_b + begin.to(tl.int64) * stride_h + channel.to(tl.int64) * stride_c

    if (rest % bin_blocks) * BINS < low_width:
        # 1. Down the rows that read this line, then along the columns, for every bin of the block.
        first = tl.load(column_span + first_column + (rest % bin_blocks) * BINS)
        last = tl.minimum((rest % bin_blocks + 1) * BINS, low_width) - 1
        past = tl.load(column_span + columns + first_column + last)
        total = tl.zeros([BINS, CHANNELS], dtype=row_t.dtype.element_ty)
        for left in range(first, past, COLUMNS):
            down_column = (left + tl.arange(0, COLUMNS))[:, None]
            pixel = source + down_column.to(tl.int64) * stride_w
            mask = (down_column < past) & known
            down = sum_down(pixel, mask, stride_h, begin, end, own_cell, own_t, i, low_height, height)
            column = (left + tl.arange(0, COLUMNS))[None, :]
            near = tl.load(near_cell + column, mask=column < past, other=-2)
            share = tl.load(near_t + column, mask=column < past, other=0.0)
            u = tl.where(near == j, 1 - share, 0.0)
            u += tl.where(second_node(near, low_width, width) == j, share, 0.0)
            total = tl.dot(u, down, total, input_precision="ieee", out_dtype=total.dtype)
        if any_special(total):
            # 2. Again, over what reads each bin alone.
            total = tl.zeros([BINS, CHANNELS], dtype=row_t.dtype.element_ty)
            pixel = source + first.to(tl.int64) * stride_w
            for w in range(first, past):
                down = sum_down(pixel, known, stride_h, begin, end, own_cell, own_t, i, low_height, height)
                near, share = tl.load(near_cell + w), tl.load(near_t + w)
                total += tl.where(near == j, (1 - share) * down, 0.0)
                total += tl.where(second_node(near, low_width, width) == j, share * down, 0.0)
                pixel += stride_w
        target = grad_levels + image * level_stride_b + channel.to(tl.int64) * level_stride_c
        target += (first_bin + i * low_width + j).to(tl.int64) * level_stride_bin
        tl.store(target, total.to(grad_levels.dtype.element_ty), mask=(j < low_width) & known)


def upsample_add(
    levels: Tensor,
    base: Tensor | None,
    height: int,
    width: int,
    sizes: Sequence[int],
    align_corners: bool,
    channels_last: bool,
) -> Tensor:
    """``base [B, C, H, W]``, if any, and the levels ``[B, C, Σhw]``, of any strides, upsampled and summed."""
    channels_last = channels_last if base is None else is_channels_last(base)
    y = empty_map(levels, levels.shape[1], height, width, channels_last)
    if y.numel() == 0:
        return y
    if channels_last:
        levels = levels.mT.contiguous().mT  # small, and read along the channels
    batch, channels = y.shape[:2]
    taps = _taps(y, sizes, align_corners)
    columns, lanes = NHWC_TILE if channels_last else NCHW_TILE
    tiles = {
        "COLUMNS": min(columns, triton.next_power_of_2(width)),
        "CHANNELS": min(lanes, triton.next_power_of_2(channels)),
    }
    programs = triton.cdiv(channels, tiles["CHANNELS"]) * taps.tiles * triton.cdiv(width, tiles["COLUMNS"])
    with torch.cuda.device_of(y):
        upsample_add_fwd_kernel[programs, batch](
            levels, y if base is None else base.contiguous(memory_format=format_of(channels_last)), y,
            taps.level, taps.row_cell, taps.row_t, taps.column_cell, taps.column_t, taps.tile_edge,
            channels, len(sizes) // 2, height, width, *levels.stride(),
            *((1, channels) if channels_last else (height * width, 1)),
            ADD=base is not None, ROWS=taps.tile_rows, **tiles,
        )  # fmt: skip
    return y


def upsample_add_backward(grad: Tensor, sizes: Sequence[int], align_corners: bool) -> Tensor:
    """The gradient by the levels, ``[B, C, Σhw]``, of ``grad [B, C, H, W]`` with any strides."""
    batch, channels, height, width = grad.shape
    pairs = size_pairs(sizes)
    grad_levels = empty_levels(grad, sum(h * w for h, w in pairs))
    if grad_levels.numel() == 0:
        return grad_levels
    taps = _taps(grad, sizes, align_corners)
    columns, lanes = NHWC_GRAD_TILE if grad.stride(1) == 1 else NCHW_GRAD_TILE
    lines, widest = sum(h for h, _ in pairs), max(w for _, w in pairs)
    bins = max(16, min(BINS, triton.next_power_of_2(widest)))
    bin_blocks = triton.cdiv(widest, bins)
    with torch.cuda.device_of(grad):
        upsample_add_bwd_kernel[lines * bin_blocks * triton.cdiv(channels, lanes), batch](
            grad, grad_levels, taps.level, taps.line, taps.column_span,
            taps.row_cell, taps.row_t, taps.column_cell, taps.column_t,
            channels, len(pairs), lines, taps.column_span.shape[1], bin_blocks, height, width,
            *grad.stride(), *grad_levels.stride(), BINS=bins, COLUMNS=columns, CHANNELS=lanes,
        )  # fmt: skip
    return grad_levels


def _taps(map: Tensor, sizes: Sequence[int], align_corners: bool) -> UpsampleTaps:
    arithmetic = torch.float64 if map.dtype == torch.float64 else torch.float32
    size = (map.shape[2], map.shape[3])
    return upsample_taps(size, tuple(size_pairs(sizes)), align_corners, arithmetic, map.device)
