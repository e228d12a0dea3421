"""Device functions that the kernels on upsampled logits share."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def interpolate(a, b, t):
    """``(1 - t) a + t b``, not ``a + t (b - a)``: what an infinite logit gives must be what PyTorch gives.

    The rounding is pinned down by an explicit fma, so that every kernel gets the same bits for a pixel's logit.
    """
    return tl.fma(t, b, (1 - t) * a)


@triton.jit
def interpolate_tile(top, bottom, left, right, tx, ty):
    """The upsampled logits of a tile whose pixels lie between two rows of nodes.

    ``top`` and ``bottom`` point to the rows, ``left`` and ``right`` are every column's offsets in them. Each column is
    interpolated once for all rows of the tile.
    """
    on_top = interpolate(tl.load(top + left).to(tx.dtype), tl.load(top + right).to(tx.dtype), tx)
    on_bottom = interpolate(tl.load(bottom + left).to(tx.dtype), tl.load(bottom + right).to(tx.dtype), tx)
    return interpolate(on_top, on_bottom, ty)


@triton.jit
def second_node(first, nodes, size):
    """The other node that a position in the cell of ``first`` is interpolated from.

    As PyTorch has it: the next one, but at equal sizes the same, so that an infinite or NaN neighbour does not matter.
    """
    return tl.minimum(first + (nodes != size), nodes - 1)


@triton.jit
def interpolate_level(
    bins,
    stride_bin,
    low_height,
    low_width,
    row_cell,
    row_t,
    column_cell,
    column_t,
    first,
    row,
    end,
    column,
    height,
    width,
):
    """A tile of an upsampled level, ``[rows, columns, channels]``; its rows lie between two lines of bins.

    ``bins`` point to every channel's first bin, and the tables are the level's own; rows from ``end`` on are left out.
    """
    near_row = tl.load(row_cell + first).to(tl.int64)
    top = bins + near_row * low_width * stride_bin
    bottom = bins + second_node(near_row, low_height, height) * low_width * stride_bin
    near = tl.load(column_cell + column, mask=column < width, other=0).to(tl.int64)
    left, right = near * stride_bin, second_node(near, low_width, width) * stride_bin
    tx = tl.load(column_t + column, mask=column < width, other=0.0)
    ty = tl.load(row_t + row, mask=row < end, other=0.0)
    return interpolate_tile(top, bottom, left, right, tx, ty)


@triton.jit
def any_special(tile):
    """Whether a number of a tile is infinite or NaN: no product by a matrix with zeros is right then."""
    return tl.sum(tl.sum(tile * 0.0, axis=1), axis=0) != 0


@triton.jit
def exceeds(z, largest):
    """Whether ``z`` replaces ``largest``: as in torch.argmax, NaN is the largest, and the first of equals stays."""
    return ~(z <= largest) & (largest == largest)
