"""Kernels of the gradients by levels and weight: the transpose of the three steps of pyramid_conv_fwd.py.

    r[b, h, (level, dx, j), o]  = Σ_w column_taps[w, (level, dx, j)] · grad[b, o, h, w]       the one pass over grad
    q[b, (i, j), (dy, dx), o]   = Σ_h row_taps[h, (level, dy, i)] · r[b, h, (level, dx, j), o]
    grad_weight[o, c, dy, dx]   = Σ_{b, bin} q[b, bin, (dy, dx), o] · levels[b, c, bin]    all levels in one launch
    grad_levels[b, c, bin]     = Σ_{dy, dx, o} q[b, bin, (dy, dx), o] · weight[o, c, dy, dx]

Each sum has one owner and a fixed order: no atomics, the same bits every run.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from pspnet_fast.triton.bilinear import any_special
from pspnet_fast.triton.pyramid_conv_fwd import find_level


@triton.jit(do_not_specialize=["tap_count", "height", "width"])
def r_bwd_kernel(
    grad,  # [B, O, H, W], by its strides
    r,  # [B, H, Σ kw·k, O]
    column_taps,  # the tables, see PyramidTaps
    column_reads,
    tap_count,
    outputs,
    height,
    width,
    stride_b,
    stride_o,
    stride_h,
    stride_w,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, image = (tl.program_id(0) % height).to(tl.int64), tl.program_id(1).to(tl.int64)
    output = (tl.program_id(0) // height) * OUTPUTS + tl.arange(0, OUTPUTS)
    exists = (output < outputs)[None, :]
    source = grad + image * stride_b + row * stride_h + output.to(tl.int64)[None, :] * stride_o
    dtype = r.dtype.element_ty
    for start in range(0, tap_count, TAPS):
        tap = start + tl.arange(0, TAPS)
        total = tl.zeros([TAPS, OUTPUTS], dtype=dtype)
        for left in range(0, width, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            known = column < width
            weights = column_taps + column[None, :] * tap_count + tap[:, None]
            u = tl.load(weights, mask=(tap < tap_count)[:, None] & known[None, :], other=0.0)
            g = tl.load(source + column.to(tl.int64)[:, None] * stride_w, mask=known[:, None] & exists, other=0.0)
            total = tl.dot(u, g.to(dtype), total, input_precision=PRECISION, out_dtype=dtype)
        if any_special(total):  # again, over what the columns read alone
            total = tl.zeros([TAPS, OUTPUTS], dtype=dtype)
            for w in range(0, width):
                entry = w * tap_count + tap[:, None]
                u = tl.load(column_taps + entry, mask=(tap < tap_count)[:, None], other=0.0)
                read = tl.load(column_reads + entry, mask=(tap < tap_count)[:, None], other=0)
                g = tl.load(source + w * stride_w, mask=exists, other=0.0).to(dtype)
                total += tl.where(read != 0, u * g, 0.0)
        target = r + ((image * height + row) * tap_count + tap)[:, None] * outputs + output[None, :]
        tl.store(target, total, mask=(tap < tap_count)[:, None] & exists)


@triton.jit(do_not_specialize=["level_count", "packed_bins", "tap_count", "row_tap_count", "height"])
def q_bwd_kernel(
    r,  # [B, H, Σ kw·k, O]
    q,  # [B, packed_bins, kh·kw, O]
    level_table,
    tap_table,
    row_taps,
    row_reads,
    level_count,
    packed_bins,
    tap_count,
    row_tap_count,
    outputs,
    height,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # A program takes one tap (level, dx, j), and to it every (dy, i).
    tap, image = tl.program_id(0) % tap_count, tl.program_id(1).to(tl.int64)
    output = (tl.program_id(0) // tap_count) * OUTPUTS + tl.arange(0, OUTPUTS)
    exists = (output < outputs)[None, :]
    level = tl.load(tap_table + tap)
    low_height, low_width = tl.load(level_table + level), tl.load(level_table + level_count + level)
    bin, kx = tl.load(tap_table + tap_count + tap), tl.load(tap_table + 2 * tap_count + tap)
    first_row_tap = tl.load(tap_table + 3 * tap_count + tap)
    dtype = r.dtype.element_ty
    for start in range(0, KERNEL_HEIGHT * low_height, LINES):
        line = start + tl.arange(0, LINES)
        known = line < KERNEL_HEIGHT * low_height
        total = tl.zeros([LINES, OUTPUTS], dtype=dtype)
        for top in range(0, height, ROWS):
            row = top + tl.arange(0, ROWS)
            weights = row_taps + row[None, :] * row_tap_count + (first_row_tap + line)[:, None]
            u = tl.load(weights, mask=known[:, None] & (row < height)[None, :], other=0.0)
            source = r + ((image * height + row) * tap_count + tap)[:, None] * outputs + output[None, :]
            r_tile = tl.load(source, mask=(row < height)[:, None] & exists, other=0.0)
            total = tl.dot(u, r_tile, total, input_precision=PRECISION, out_dtype=dtype)
        if any_special(total):  # again, over what the rows read alone
            total = tl.zeros([LINES, OUTPUTS], dtype=dtype)
            for h in range(0, height):
                entry = h * row_tap_count + (first_row_tap + line)[:, None]
                u = tl.load(row_taps + entry, mask=known[:, None], other=0.0)
                read = tl.load(row_reads + entry, mask=known[:, None], other=0)
                r_at = r + ((image * height + h) * tap_count + tap) * outputs + output[None, :]
                total += tl.where(read != 0, u * tl.load(r_at, mask=exists, other=0.0), 0.0)
        kernel_tap = (line // low_height) * KERNEL_WIDTH + kx
        entry = image * packed_bins + bin + (line % low_height) * low_width
        entry = entry * (KERNEL_HEIGHT * KERNEL_WIDTH) + kernel_tap
        tl.store(q + entry[:, None] * outputs + output[None, :], total, mask=known[:, None] & exists)


@triton.jit(do_not_specialize=["batch", "level_count", "packed_bins", "first_channel"])
def weight_bwd_kernel(
    q,  # [B, packed_bins, kh·kw, O]: its gradient
    levels,  # [B, Ck, packed_bins], by its strides
    grad_weight,  # [O, C + L·Ck, kh, kw], by its strides; the levels' channels are written
    level_table,
    batch,
    level_channels,
    level_count,
    packed_bins,
    outputs,
    first_channel,
    level_stride_b,
    level_stride_c,
    level_stride_bin,
    weight_stride_o,
    weight_stride_c,
    weight_stride_h,
    weight_stride_w,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    tap, block, level = tl.program_id(0) % taps, tl.program_id(0) // taps, tl.program_id(1)
    channel_blocks = tl.cdiv(level_channels, CHANNELS)
    channel = (block % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    output = (block // channel_blocks) * OUTPUTS + tl.arange(0, OUTPUTS)
    bins = tl.load(level_table + level) * tl.load(level_table + level_count + level)
    first_bin = tl.load(level_table + 2 * level_count + level)

    dtype = q.dtype.element_ty
    total = tl.zeros([OUTPUTS, CHANNELS], dtype=dtype)
    for start in range(0, batch * bins, DEPTH):
        position = start + tl.arange(0, DEPTH)
        known = position < batch * bins
        image, bin = (position // bins).to(tl.int64), first_bin + position % bins
        q_tile_at = q + ((image * packed_bins + bin) * taps + tap)[None, :] * outputs + output[:, None]
        p_at = levels + (image * level_stride_b + bin * level_stride_bin)[:, None]
        p_at += channel.to(tl.int64)[None, :] * level_stride_c
        q_tile = tl.load(q_tile_at, mask=(output < outputs)[:, None] & known[None, :], other=0.0)
        p = tl.load(p_at, mask=known[:, None] & (channel < level_channels)[None, :], other=0.0)
        total = tl.dot(q_tile, p.to(dtype), total, input_precision=PRECISION, out_dtype=dtype)
    target = grad_weight + (tap // KERNEL_WIDTH) * weight_stride_h + (tap % KERNEL_WIDTH) * weight_stride_w
    target += (first_channel + level * level_channels + channel).to(tl.int64)[None, :] * weight_stride_c
    target += output.to(tl.int64)[:, None] * weight_stride_o
    mask = (output < outputs)[:, None] & (channel < level_channels)[None, :]
    tl.store(target, total.to(grad_weight.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["batch", "level_count", "packed_bins", "first_channel"])
def levels_bwd_kernel(
    q,  # [B, packed_bins, kh·kw, O]: its gradient
    weight,  # [O, C + L·Ck, kh, kw], by its strides
    grad_levels,  # [B, Ck, packed_bins]
    level_table,
    batch,
    level_channels,
    level_count,
    packed_bins,
    outputs,
    first_channel,
    weight_stride_o,
    weight_stride_c,
    weight_stride_h,
    weight_stride_w,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    ADD: tl.constexpr,  # whether to what grad_levels holds
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    channel_blocks = tl.cdiv(level_channels, CHANNELS)
    channel = (tl.program_id(0) % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    level, bins, block = find_level(level_table, level_count, tl.program_id(0) // channel_blocks, batch, POSITIONS)
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    known = position < batch * bins
    image = (position // bins).to(tl.int64)
    bin = tl.load(level_table + 2 * level_count + level) + position % bins

    dtype = q.dtype.element_ty
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    target = grad_levels + (image[:, None] * level_channels + channel[None, :]) * packed_bins + bin[:, None]
    mask = known[:, None] & (channel < level_channels)[None, :]
    total = tl.zeros([POSITIONS, CHANNELS], dtype=dtype)
    if ADD:
        total = tl.load(target, mask=mask, other=0.0).to(dtype)
    matrix = weight + (first_channel + level * level_channels + channel).to(tl.int64)[None, :] * weight_stride_c
    for tap in range(taps):
        source = q + ((image * packed_bins + bin) * taps + tap)[:, None] * outputs
        plane = matrix + (tap // KERNEL_WIDTH) * weight_stride_h + (tap % KERNEL_WIDTH) * weight_stride_w
        for start in range(0, outputs, DEPTH):
            output = start + tl.arange(0, DEPTH)
            q_tile = tl.load(source + output[None, :], mask=known[:, None] & (output < outputs)[None, :], other=0.0)
            w_mask = (output < outputs)[:, None] & (channel < level_channels)[None, :]
            w = tl.load(plane + output.to(tl.int64)[:, None] * weight_stride_o, mask=w_mask, other=0.0)
            total = tl.dot(q_tile, w.to(dtype), total, input_precision=PRECISION, out_dtype=dtype)
    tl.store(target, total.to(grad_levels.dtype.element_ty), mask=mask)
