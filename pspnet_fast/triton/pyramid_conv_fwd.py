"""Kernels of the pyramid's terms in a convolution's output: Q, and its interpolation into the output.

    q[b, bin, (dy, dx), o] = Σ_c weight[o, c, dy, dx] · levels[b, c, bin]        all levels in one launch
    r[(level, dx, j), o]    = Σ_dy q[b, (i, j), (dy, dx), o], rows interpolated    for a row of an image, in registers
    y[b, o, h, w]          += Σ column_taps[w, (level, dx, j)] · r[(level, dx, j), o]

A program of the second kernel keeps to a few rows, which read the same Q: it comes from the first-level cache.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from pspnet_fast.triton.bilinear import any_special, interpolate, second_node


@triton.jit
def find_level(level_table, level_count, block, batch, POSITIONS: tl.constexpr):
    """The level that a block of positions (image, bin) lies in, its bins, and the block's number in the level."""
    level = tl.zeros([], dtype=tl.int32)
    bins = tl.load(level_table) * tl.load(level_table + level_count)
    blocks = tl.cdiv(batch * bins, POSITIONS)
    while block >= blocks:
        block -= blocks
        level += 1
        bins = tl.load(level_table + level) * tl.load(level_table + level_count + level)
        blocks = tl.cdiv(batch * bins, POSITIONS)
    return level, bins, block


@triton.jit(do_not_specialize=["batch", "level_count", "packed_bins", "first_channel"])
def q_fwd_kernel(
    levels,  # [B, Ck, packed_bins], by its strides
    weight,  # [O, C + L·Ck, kh, kw], by its strides
    q,  # [B, packed_bins, kh·kw, O]
    special,  # [1], 0: set to 1 where a number of q is infinite or NaN
    level_table,  # the tables, see PyramidTaps
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
    POSITIONS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Neighbouring programs differ in the tap: where the taps of a weight lie side by side, they share its cache lines.
    # One axis of the grid has them all, as only the first may be long.
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    tap, block, output_blocks = tl.program_id(0) % taps, tl.program_id(0) // taps, tl.cdiv(outputs, OUTPUTS)
    output = (block % output_blocks) * OUTPUTS + tl.arange(0, OUTPUTS)
    level, bins, block = find_level(level_table, level_count, block // output_blocks, batch, POSITIONS)
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    known = position < batch * bins
    image = (position // bins).to(tl.int64)
    bin = tl.load(level_table + 2 * level_count + level) + position % bins

    dtype = q.dtype.element_ty
    total = tl.zeros([POSITIONS, OUTPUTS], dtype=dtype)
    source = levels + image * level_stride_b + bin * level_stride_bin
    matrix = weight + (tap // KERNEL_WIDTH) * weight_stride_h + (tap % KERNEL_WIDTH) * weight_stride_w
    matrix += output.to(tl.int64) * weight_stride_o
    for start in range(0, level_channels, DEPTH):
        channel = start + tl.arange(0, DEPTH)
        inside = channel < level_channels
        a_at = source[:, None] + channel.to(tl.int64)[None, :] * level_stride_c
        b_at = (
            matrix[None, :] + (first_channel + level * level_channels + channel).to(tl.int64)[:, None] * weight_stride_c
        )
        a = tl.load(a_at, mask=known[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_at, mask=inside[:, None] & (output < outputs)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=dtype)
    target = q + ((image * packed_bins + bin) * taps + tap)[:, None] * outputs + output[None, :]
    tl.store(target, total, mask=known[:, None] & (output < outputs)[None, :])
    if any_special(total):
        tl.store(special, 1)


@triton.jit
def interpolate_rows(
    q,  # of the image, [packed_bins, kh·kw, O], at the block's outputs
    level_table,
    tap_table,
    row_cell,
    row_t,
    tap,  # [TAPS]
    row,
    exists,  # [1, OUTPUTS]
    level_count,
    tap_count,
    outputs,
    height,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
):
    """What each tap (level, dx, j) of the columns finds in this row: ``[TAPS, OUTPUTS]``."""
    dtype = q.dtype.element_ty
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    known = tap < tap_count
    level = tl.load(tap_table + tap, mask=known, other=0)
    bin = tl.load(tap_table + tap_count + tap, mask=known, other=0).to(tl.int64)
    kx = tl.load(tap_table + 2 * tap_count + tap, mask=known, other=0)
    low_height, low_width = tl.load(level_table + level), tl.load(level_table + level_count + level)
    mask = known[:, None] & exists
    r = tl.zeros(mask.shape, dtype=dtype)
    for ky in range(KERNEL_HEIGHT):
        source = row + ky - KERNEL_HEIGHT // 2
        if (source >= 0) & (source < height):
            i = tl.load(row_cell + level * height + source)
            t = tl.load(row_t + level * height + source)[:, None]
            top = q + (((bin + i * low_width) * taps + ky * KERNEL_WIDTH + kx) * outputs)[:, None]
            bottom = top + ((second_node(i, low_height, height) - i) * low_width * taps * outputs)[:, None]
            on_top, on_bottom = tl.load(top, mask=mask, other=0.0), tl.load(bottom, mask=mask, other=0.0)
            r += interpolate(on_top, on_bottom, t)
    return r


@triton.jit(do_not_specialize=["level_count", "packed_bins", "tap_count", "height"])
def pyramid_conv_fwd_kernel(
    q,  # [B, packed_bins, kh·kw, O]
    special,  # [1], whether a number of it is infinite or NaN
    y,  # [B, O, H, W], by its strides: added to
    mean,  # [O], of the normalisation behind the convolution, or None where there is none
    var,
    gamma,
    beta,
    level_table,
    tap_table,
    row_cell,
    row_t,
    column_taps,
    column_reads,
    level_count,
    packed_bins,
    tap_count,
    outputs,
    height,
    width,
    stride_b,
    stride_o,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # 1. Some rows of an image, a block of columns, a block of channels.
    output_blocks, column_blocks = tl.cdiv(outputs, OUTPUTS), tl.cdiv(width, COLUMNS)
    output = (tl.program_id(0) % output_blocks) * OUTPUTS + tl.arange(0, OUTPUTS)
    block = tl.program_id(0) // output_blocks
    column = (block % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    first = (block // column_blocks) * ROWS
    image = tl.program_id(1).to(tl.int64)
    inside = (column < width)[:, None] & (output < outputs)[None, :]

    dtype = q.dtype.element_ty
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    image_q = q + image * packed_bins * taps * outputs + output[None, :]
    target = y + image * stride_b + first.to(tl.int64) * stride_h
    target += column.to(tl.int64)[:, None] * stride_w + output.to(tl.int64)[None, :] * stride_o
    finite = tl.load(special) == 0
    for row in range(first, tl.minimum(first + ROWS, height)):
        total = tl.zeros([COLUMNS, OUTPUTS], dtype=dtype)
        if finite:
            for start in range(0, tap_count, TAPS):
                # 2. Rows interpolated; then columns, all levels in one product.
                tap = start + tl.arange(0, TAPS)
                r = interpolate_rows(
                    image_q, level_table, tap_table, row_cell, row_t, tap, row, (output < outputs)[None, :],
                    level_count, tap_count, outputs, height, KERNEL_HEIGHT, KERNEL_WIDTH,
                )  # fmt: skip
                weights = column_taps + column[:, None] * tap_count + tap[None, :]
                u = tl.load(weights, mask=(column < width)[:, None] & (tap < tap_count)[None, :], other=0.0)
                total = tl.dot(u, r, total, input_precision=PRECISION, out_dtype=dtype)
        else:
            for start in range(0, tap_count):
                # The same over what each column reads alone.
                r = interpolate_rows(
                    image_q, level_table, tap_table, row_cell, row_t, start + tl.arange(0, 1), row,
                    (output < outputs)[None, :], level_count, tap_count, outputs, height, KERNEL_HEIGHT, KERNEL_WIDTH,
                )  # fmt: skip
                entry = column[:, None] * tap_count + start
                u = tl.load(column_taps + entry, mask=(column < width)[:, None], other=0.0)
                read = tl.load(column_reads + entry, mask=(column < width)[:, None], other=0)
                total += tl.where(read != 0, u * r, 0.0) + tl.where(read == 2, 0.0 * r, 0.0)

        # 3. Into the output, which is read once and written once.
        total += tl.load(target, mask=inside, other=0.0).to(dtype)
        if mean is not None:
            exists = output < outputs
            variance = tl.load(var + output, mask=exists, other=1.0).to(dtype)
            scale = tl.load(gamma + output, mask=exists, other=0.0).to(dtype) / tl.sqrt(variance + EPS)
            centred = total - tl.load(mean + output, mask=exists, other=0.0).to(dtype)[None, :]
            total = centred * scale[None, :] + tl.load(beta + output, mask=exists, other=0.0).to(dtype)[None, :]
            total = tl.where(total < 0, 0.0, total)  # NaN stays
        tl.store(target, total.to(y.dtype.element_ty), mask=inside)
        target += stride_h
