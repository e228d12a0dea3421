"""Probabilities of upsampled logits, added into a map.

A program owns a tile of the map. It reads one upsampled pixel for each of its own, or two by two, each
interpolated anew from its nodes for the maximum, for the sum of exponentials, and for what is added.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pspnet_fast.triton.bilinear import exceeds, interpolate_tile, second_node
from pspnet_fast.triton.cells import cut_axis

ROWS, COLUMNS = 8, 32


@triton.jit
def read_position(index, weight, position, inside, n, tap: tl.constexpr, TABLE: tl.constexpr):
    """Which position of the upsampled axis is read, and what it weighs; 0 outside."""
    if TABLE:
        at = tl.load(index + 2 * position + tap, mask=inside, other=0)
        share = tl.load(weight + 2 * position + tap, mask=inside, other=0.0)
    else:
        at = position
        share = tl.where(inside, 1.0 if tap == 0 else 0.0, 0.0).to(weight.dtype.element_ty)
    return tl.minimum(tl.maximum(at, 0), n - 1), share


@triton.jit(do_not_specialize=["classes", "low_height", "low_width", "up_height", "up_width", "height", "width"])
def upsample_softmax_add_kernel(
    total,  # [B, C, H, W], by its strides
    logits,  # [B, C, h, w], by its strides
    row_cell,  # the tables of both axes of the upsampled map, see Cells
    row_t,
    column_cell,
    column_t,
    row_index,  # which positions of the upsampled map are read, where ROW_TABLE or COLUMN_TABLE says so
    row_weight,
    column_index,
    column_weight,
    scale,  # 0-d: a number would be passed in float32
    flip,
    classes,
    low_height,
    low_width,
    up_height,
    up_width,
    height,
    width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    total_stride_b,
    total_stride_c,
    total_stride_h,
    total_stride_w,
    ROW_TABLE: tl.constexpr,
    COLUMN_TABLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(width, COLUMNS)
    y = (tl.program_id(0) // blocks) * ROWS + tl.arange(0, ROWS)
    x = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, inside = y < height, x < width
    to = (
        total
        + image * total_stride_b
        + y.to(tl.int64)[:, None] * total_stride_h
        + x.to(tl.int64)[None, :] * total_stride_w
    )
    from_image = logits + image * stride_b

    for row_tap in tl.static_range(2 if ROW_TABLE else 1):
        row, row_share = read_position(row_index, row_weight, y, row_inside, up_height, row_tap, ROW_TABLE)
        near_row = tl.load(row_cell + row).to(tl.int64)[:, None]
        ty = tl.load(row_t + row)[:, None]
        top = from_image + near_row * stride_h
        bottom = from_image + second_node(near_row, low_height, up_height) * stride_h
        for column_tap in tl.static_range(2 if COLUMN_TABLE else 1):
            at, share = read_position(column_index, column_weight, x, inside, up_width, column_tap, COLUMN_TABLE)
            column = tl.where(flip != 0, up_width - 1 - at, at)
            near = tl.load(column_cell + column).to(tl.int64)[None, :]
            tx = tl.load(column_t + column)[None, :]
            left, right = near * stride_w, second_node(near, low_width, up_width) * stride_w

            most = tl.full([ROWS, COLUMNS], float("-inf"), dtype=ty.dtype)
            for c in range(classes):
                z = interpolate_tile(top + c * stride_c, bottom + c * stride_c, left, right, tx, ty)
                most = tl.where(exceeds(z, most), z, most)
            summed = tl.zeros([ROWS, COLUMNS], dtype=ty.dtype)
            for c in range(classes):
                z = interpolate_tile(top + c * stride_c, bottom + c * stride_c, left, right, tx, ty)
                summed += tl.exp(z - most)
            factor = row_share[:, None] * share[None, :]
            read = (factor != 0) & row_inside[:, None] & inside[None, :]
            factor = factor * tl.load(scale) / summed
            for c in range(classes):
                z = interpolate_tile(top + c * stride_c, bottom + c * stride_c, left, right, tx, ty)
                old = tl.load(to + c * total_stride_c, mask=read, other=0.0)
                tl.store(to + c * total_stride_c, old + factor * tl.exp(z - most), mask=read)


def upsample_softmax_add(
    total: Tensor,
    logits: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    flip: bool,
    weight: float,
    row_index: Tensor | None,
    row_weight: Tensor | None,
    column_index: Tensor | None,
    column_weight: Tensor | None,
) -> None:
    """Adds ``weight`` times the softmax of the upsampled logits to ``total``, see the operator of this name.

    Args:
        total: ``[B, C, H, W]``, float32, or float64 for float64 logits; with any strides.
        logits: ``[B, C, h, w]``, float32, float64, float16 or bfloat16, with any strides.
        height, width, align_corners: of the upsampling.
        flip: mirror the upsampled map.
        row_index, row_weight, column_index, column_weight: int32 and of ``total``'s dtype, ``[H, 2]`` and ``[W, 2]``.
    """
    batch, classes, low_height, low_width = logits.shape
    if total.numel() == 0:
        return
    rows = cut_axis(low_height, height, align_corners, total.dtype, logits.device)
    columns = cut_axis(low_width, width, align_corners, total.dtype, logits.device)
    with torch.cuda.device_of(logits):
        tiles = triton.cdiv(total.shape[2], ROWS) * triton.cdiv(total.shape[3], COLUMNS)
        upsample_softmax_add_kernel[tiles, batch](
            total, logits, rows.cell, rows.t, columns.cell, columns.t,
            rows.cell if row_index is None else row_index, rows.t if row_weight is None else row_weight,
            columns.cell if column_index is None else column_index,
            columns.t if column_weight is None else column_weight,
            torch.full((), weight, dtype=total.dtype, device=total.device), int(flip),
            classes, low_height, low_width, height, width, *total.shape[2:],
            *logits.stride(), *total.stride(),
            ROW_TABLE=row_index is not None, COLUMN_TABLE=column_index is not None,
            ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
