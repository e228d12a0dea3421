"""Between a map and its atoms: the only kernels that touch x and its gradient, each element once.

NCHW and channels_last take a kernel each, as memory order decides what is coalesced: neighbouring threads go along the
columns in NCHW, along the channels in channels_last.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["height", "row_intervals", "column_intervals"])
def atoms_nchw_fwd_kernel(
    x,  # [B·C, H, W]
    atoms,  # [B·C, row intervals, column intervals]
    row_edge,
    column_edge,
    height,
    width,
    row_intervals,
    column_intervals,
    ROWS: tl.constexpr,  # at least the longest row interval
    COLUMNS: tl.constexpr,
    INTERVALS: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    dtype = atoms.dtype.element_ty
    row = tl.arange(0, ROWS)
    for i in range(tl.program_id(1), row_intervals, tl.num_programs(1)):
        top = tl.load(row_edge + i)
        rows = tl.load(row_edge + i + 1) - top
        stripe = x + (plane * height + top) * width

        for first in range(0, column_intervals, INTERVALS):
            # 1. Some neighbouring intervals cover a contiguous run of columns: each element is loaded once.
            j = first + tl.arange(0, INTERVALS)
            begin = tl.load(column_edge + j, mask=j < column_intervals, other=0)
            end = tl.load(column_edge + j + 1, mask=j < column_intervals, other=0)
            total = tl.zeros([INTERVALS], dtype=dtype)
            last = tl.minimum(first + INTERVALS, column_intervals)
            for left in range(tl.load(column_edge + first), tl.load(column_edge + last), COLUMNS):
                # 2. Down the rows of the stripe, then along the columns of every interval.
                column = left + tl.arange(0, COLUMNS)
                mask = (row[:, None] < rows) & (column[None, :] < width)
                tile = tl.load(stripe + row[:, None] * width + column[None, :], mask=mask, other=0.0)
                down = tl.sum(tile.to(dtype), axis=0)
                inside = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
                total += tl.sum(tl.where(inside, down[None, :], 0.0), axis=1)
            atom = (plane * row_intervals + i) * column_intervals + j
            tl.store(atoms + atom, total, mask=j < column_intervals)


@triton.jit(do_not_specialize=["height", "width", "row_intervals", "column_intervals"])
def atoms_nhwc_fwd_kernel(
    x,  # [B, H, W, C]
    atoms,  # [B, row intervals, column intervals, C]
    row_edge,
    column_edge,
    height,
    width,
    channels,
    row_intervals,
    column_intervals,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    image = atom // (row_intervals * column_intervals)
    i = (atom // column_intervals) % row_intervals
    j = atom % column_intervals
    top, left = tl.load(row_edge + i), tl.load(column_edge + j)
    rows, columns = tl.load(row_edge + i + 1) - top, tl.load(column_edge + j + 1) - left

    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    corner = x + ((image * height + top) * width + left) * channels
    total = tl.zeros([PIXELS, CHANNELS], dtype=atoms.dtype.element_ty)
    for first in range(0, rows * columns, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        offset = ((pixel // columns).to(tl.int64) * width + pixel % columns) * channels
        mask = (pixel < rows * columns)[:, None] & (channel < channels)[None, :]
        total += tl.load(corner + offset[:, None] + channel[None, :], mask=mask, other=0.0).to(total.dtype)
    tl.store(atoms + atom * channels + channel, tl.sum(total, axis=0), mask=channel < channels)


@triton.jit(do_not_specialize=["height", "row_intervals", "column_intervals"])
def atoms_nchw_bwd_kernel(
    atoms,  # [B·C, row intervals, column intervals]
    dx,  # [B·C, H, W]
    row_edge,
    column_interval,  # [W]
    height,
    width,
    row_intervals,
    column_intervals,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,  # to what dx holds, or overwrite it
):
    plane = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)
    for i in range(tl.program_id(1), row_intervals, tl.num_programs(1)):
        top = tl.load(row_edge + i)
        rows = tl.load(row_edge + i + 1) - top
        stripe = dx + (plane * height + top) * width
        for left in range(0, width, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            j = tl.load(column_interval + column, mask=column < width, other=0)
            value = tl.load(atoms + (plane * row_intervals + i) * column_intervals + j, mask=column < width, other=0.0)
            mask = (row[:, None] < rows) & (column[None, :] < width)
            target = stripe + row[:, None] * width + column[None, :]
            tile = tl.broadcast_to(value[None, :], [ROWS, COLUMNS])
            if ADD:
                tile += tl.load(target, mask=mask, other=0.0).to(tile.dtype)
            tl.store(target, tile.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "row_intervals", "column_intervals"])
def atoms_nhwc_bwd_kernel(
    atoms,  # [B, row intervals, column intervals, C]
    dx,  # [B, H, W, C]
    row_edge,
    column_edge,
    height,
    width,
    channels,
    row_intervals,
    column_intervals,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ADD: tl.constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    image = atom // (row_intervals * column_intervals)
    i = (atom // column_intervals) % row_intervals
    j = atom % column_intervals
    top, left = tl.load(row_edge + i), tl.load(column_edge + j)
    rows, columns = tl.load(row_edge + i + 1) - top, tl.load(column_edge + j + 1) - left

    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    corner = dx + ((image * height + top) * width + left) * channels
    value = tl.load(atoms + atom * channels + channel, mask=channel < channels, other=0.0)
    for first in range(0, rows * columns, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        offset = ((pixel // columns).to(tl.int64) * width + pixel % columns) * channels
        mask = (pixel < rows * columns)[:, None] & (channel < channels)[None, :]
        target = corner + offset[:, None] + channel[None, :]
        tile = tl.broadcast_to(value[None, :], [PIXELS, CHANNELS])
        if ADD:
            tile += tl.load(target, mask=mask, other=0.0).to(tile.dtype)
        tl.store(target, tile.to(dx.dtype.element_ty), mask=mask)
