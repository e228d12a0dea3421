"""The most likely class of every pixel from low-resolution logits.

The forward kernel of the cross-entropy without its exponentials: a pixel and class costs one interpolation and two
comparisons, and a pixel's bytes are the label written.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pspnet_fast.triton.bilinear import exceeds, interpolate_tile, second_node
from pspnet_fast.triton.cells import cut_axis

COLUMNS = 32


@triton.jit(do_not_specialize=["classes", "low_height", "low_width", "height", "width"])
def upsample_argmax_kernel(
    logits,  # [B, C, h, w], by its strides
    labels,  # [B, H, W]
    row_cell,  # the tables of both axes, see Cells
    row_t,
    tile_edge,
    column_cell,
    column_t,
    classes,
    low_height,
    low_width,
    height,
    width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0) // blocks
    first, end = tl.load(tile_edge + tile), tl.load(tile_edge + tile + 1)
    row = first + tl.arange(0, ROWS)
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)

    near_row = tl.load(row_cell + first).to(tl.int64)
    near = tl.load(column_cell + column, mask=column < width, other=0).to(tl.int64)
    top = logits + image * stride_b + near_row * stride_h
    bottom = top + (second_node(near_row, low_height, height) - near_row) * stride_h
    left, right = near * stride_w, second_node(near, low_width, width) * stride_w
    tx = tl.load(column_t + column, mask=column < width, other=0.0)[None, :]
    ty = tl.load(row_t + row, mask=row < end, other=0.0)[:, None]

    largest = tl.full([ROWS, COLUMNS], float("-inf"), dtype=ty.dtype)
    best = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    for c in range(classes):
        z = interpolate_tile(top, bottom, left[None, :], right[None, :], tx, ty)
        larger = exceeds(z, largest)
        largest = tl.where(larger, z, largest)
        best = tl.where(larger, c, best)
        top += stride_c
        bottom += stride_c
    pixel = (image * height + row)[:, None] * width + column[None, :]
    inside = (row < end)[:, None] & (column < width)[None, :]
    tl.store(labels + pixel, best.to(labels.dtype.element_ty), mask=inside)


def upsample_argmax(logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """The class of the largest upsampled logit of every pixel, as ``torch.argmax`` has it (first of equals, NaN wins).

    Args:
        logits: ``[B, C, h, w]``, float32, float64, float16 or bfloat16, with any strides.
        height, width: of the label map.
        align_corners: of the upsampling.
        dtype: of the labels; int64, int32 or uint8.

    Returns:
        ``[B, height, width]``.
    """
    batch, classes, low_height, low_width = logits.shape
    labels = torch.empty((batch, height, width), dtype=dtype, device=logits.device)
    if labels.numel() == 0:
        return labels
    arithmetic = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = cut_axis(low_height, height, align_corners, arithmetic, logits.device)
    columns = cut_axis(low_width, width, align_corners, arithmetic, logits.device)
    with torch.cuda.device_of(logits):
        upsample_argmax_kernel[rows.tiles * triton.cdiv(width, COLUMNS), batch](
            logits, labels, rows.cell, rows.t, rows.tile_edge, columns.cell, columns.t,
            classes, low_height, low_width, height, width, *logits.stride(),
            ROWS=rows.tile_rows, COLUMNS=COLUMNS, num_warps=1,
        )  # fmt: skip
    return labels
