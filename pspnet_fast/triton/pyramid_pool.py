"""Pyramid pooling in Triton: x is read once for all levels, its gradient written once.

    forward    atoms[b, a, c] = Σ x over the pixels of atom a        y[b, c, bin] = Σ atoms in the bin / its pixels
    backward   atoms[b, a, c] = Σ g[b, c, bin] / its pixels, over the bins that hold a         dx = atoms, spread

The atoms travel between the two kernels of a pass through a scratch in the accumulation dtype (float64 for float64,
else float32), some percent of x: between the map and the atoms in atoms.py, between the atoms and the bins here. Every
sum has one owner and a fixed order: no atomics, the same bits every run.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pspnet_fast.layout import is_channels_last
from pspnet_fast.triton.atoms import (
    atoms_nchw_bwd_kernel,
    atoms_nchw_fwd_kernel,
    atoms_nhwc_bwd_kernel,
    atoms_nhwc_fwd_kernel,
)
from pspnet_fast.triton.partition import Partition, partition

# Column intervals that a program sums at a time, pixels and channels of a tile in channels_last memory, and the tile of
# the small product between atoms and bins.
MAX_INTERVALS, MAX_COLUMNS = 16, 128
PIXEL_TILE, MAX_CHANNELS = 16, 128
BIN_TILE, BIN_CHANNELS = 64, 32
# Enough programs to fill a large GPU; with more planes than this, a program takes all rows of its plane.
MANY_PLANES = 8192


@triton.jit(do_not_specialize=["packed_bins", "row_intervals", "column_intervals"])
def bins_fwd_kernel(
    atoms,  # [B, C, atoms] or [B, atoms, C], by its strides
    y,  # [B, C, packed_bins]
    bin_table,  # [6, packed_bins], see Partition.bin
    channels,
    packed_bins,
    row_intervals,
    column_intervals,
    stride_channel,
    stride_atom,
    BINS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    bin = tl.program_id(1) * BINS + tl.arange(0, BINS)
    known = bin < packed_bins
    row_first = tl.load(bin_table + bin, mask=known, other=0)
    row_last = tl.load(bin_table + packed_bins + bin, mask=known, other=0)
    column_first = tl.load(bin_table + 2 * packed_bins + bin, mask=known, other=0)
    column_last = tl.load(bin_table + 3 * packed_bins + bin, mask=known, other=0)

    total = tl.zeros([CHANNELS, BINS], dtype=atoms.dtype.element_ty)
    source = atoms + image * channels * row_intervals * column_intervals + channel.to(tl.int64) * stride_channel
    for i in range(row_intervals):
        in_rows = (row_first <= i) & (i < row_last)
        for j in range(column_intervals):
            in_bin = in_rows & (column_first <= j) & (j < column_last)
            atom = tl.load(source, mask=channel < channels, other=0.0)
            total += tl.where(in_bin[None, :], atom[:, None], 0.0)
            source += stride_atom

    rows = tl.load(bin_table + 4 * packed_bins + bin, mask=known, other=1)
    columns = tl.load(bin_table + 5 * packed_bins + bin, mask=known, other=1)
    mean = total / (rows.to(total.dtype) * columns.to(total.dtype))[None, :]
    target = y + (image * channels + channel)[:, None] * packed_bins + bin[None, :]
    tl.store(target, mean, mask=(channel < channels)[:, None] & known[None, :])


@triton.jit(do_not_specialize=["packed_bins", "row_intervals", "column_intervals"])
def bins_bwd_kernel(
    grad,  # [B, C, packed_bins]
    atoms,  # [B, C, atoms] or [B, atoms, C], by its strides
    bin_table,
    channels,
    packed_bins,
    row_intervals,
    column_intervals,
    stride_channel,
    stride_atom,
    ATOMS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = ((tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    atom = tl.program_id(1) * ATOMS + tl.arange(0, ATOMS)
    i, j = atom // column_intervals, atom % column_intervals

    total = tl.zeros([CHANNELS, ATOMS], dtype=atoms.dtype.element_ty)
    source = grad + (image * channels + channel) * packed_bins
    for bin in range(packed_bins):
        in_rows = (tl.load(bin_table + bin) <= i) & (i < tl.load(bin_table + packed_bins + bin))
        in_columns = (tl.load(bin_table + 2 * packed_bins + bin) <= j) & (
            j < tl.load(bin_table + 3 * packed_bins + bin)
        )
        rows = tl.load(bin_table + 4 * packed_bins + bin).to(total.dtype)
        columns = tl.load(bin_table + 5 * packed_bins + bin).to(total.dtype)
        share = tl.load(source + bin, mask=channel < channels, other=0.0).to(total.dtype) / (rows * columns)
        total += tl.where((in_rows & in_columns)[None, :], share[:, None], 0.0)

    atom_count = row_intervals * column_intervals
    target = atoms + image * channels * atom_count + channel[:, None] * stride_channel
    mask = (channel < channels)[:, None] & (atom < atom_count)[None, :]
    tl.store(target + atom[None, :].to(tl.int64) * stride_atom, total, mask=mask)


def pyramid_pool_forward(x: Tensor, bins: Sequence[int]) -> Tensor:
    """``x [B, C, H, W]`` pooled to every size of ``bins``: ``[B, C, Σk²]`` of x's dtype.

    Args:
        x: float32, float64, float16 or bfloat16; NCHW or channels_last memory, anything else is copied to NCHW.
        bins: positive sides of the levels.
    """
    channels_last = is_channels_last(x)
    x = x if channels_last else x.contiguous()
    batch, channels, height, width = x.shape
    cut = partition(height, width, tuple(bins), x.device)
    y = x.new_empty(batch, channels, cut.packed_bins)
    if y.numel() == 0:
        return y

    atoms = _scratch(x, cut, batch, channels)
    with torch.cuda.device_of(x):
        if channels_last:
            grid, tiles = _nhwc_launch(cut, batch, channels)
            atoms_nhwc_fwd_kernel[grid](
                x, atoms, cut.row_edge, cut.column_edge, height, width, channels, *_counts(cut), **tiles
            )
        else:
            grid, tiles = _nchw_launch(cut, batch * channels, width)
            intervals = min(MAX_INTERVALS, triton.next_power_of_2(cut.columns.intervals))
            atoms_nchw_fwd_kernel[grid](
                x, atoms, cut.row_edge, cut.column_edge, height, width, *_counts(cut), INTERVALS=intervals, **tiles
            )
        tile = min(BIN_TILE, triton.next_power_of_2(cut.packed_bins))
        bins_fwd_kernel[batch * triton.cdiv(channels, BIN_CHANNELS), triton.cdiv(cut.packed_bins, tile)](
            atoms, y, cut.bin, channels, cut.packed_bins, *_counts(cut), *_strides(cut, channels, channels_last),
            BINS=tile, CHANNELS=BIN_CHANNELS,
        )  # fmt: skip
    return y


def pyramid_pool_backward(grad: Tensor, height: int, width: int, bins: Sequence[int], channels_last: bool) -> Tensor:
    """The gradient by x, ``[B, C, height, width]`` in NCHW or channels_last memory, of ``grad [B, C, Σk²]``."""
    grad = grad.contiguous()
    batch, channels = grad.shape[:2]
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    dx = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=format_)
    if dx.numel() > 0:
        _spread(grad, dx, bins, add=False)
    return dx


def pyramid_pool_backward_add(grad_x: Tensor, grad: Tensor, bins: Sequence[int]) -> None:
    """Add the gradient by x of ``grad [B, C, Σk²]`` to ``grad_x [B, C, H, W]``, which is NCHW or channels_last."""
    if grad_x.numel() > 0:
        _spread(grad.contiguous(), grad_x, bins, add=True)


def _spread(grad: Tensor, dx: Tensor, bins: Sequence[int], *, add: bool) -> None:
    """Write the gradient by x to ``dx``, or add it to what is there."""
    batch, channels, height, width = dx.shape
    channels_last = is_channels_last(dx)
    cut = partition(height, width, tuple(bins), grad.device)
    atoms = _scratch(grad, cut, batch, channels)
    with torch.cuda.device_of(grad):
        tile = min(BIN_TILE, triton.next_power_of_2(cut.atoms))
        bins_bwd_kernel[batch * triton.cdiv(channels, BIN_CHANNELS), triton.cdiv(cut.atoms, tile)](
            grad, atoms, cut.bin, channels, cut.packed_bins, *_counts(cut), *_strides(cut, channels, channels_last),
            ATOMS=tile, CHANNELS=BIN_CHANNELS,
        )  # fmt: skip
        if channels_last:
            grid, tiles = _nhwc_launch(cut, batch, channels)
            atoms_nhwc_bwd_kernel[grid](
                atoms, dx, cut.row_edge, cut.column_edge, height, width, channels, *_counts(cut), ADD=add, **tiles
            )
        else:
            grid, tiles = _nchw_launch(cut, batch * channels, width)
            atoms_nchw_bwd_kernel[grid](
                atoms, dx, cut.row_edge, cut.column_interval, height, width, *_counts(cut), ADD=add, **tiles
            )


def _scratch(like: Tensor, cut: Partition, batch: int, channels: int) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(batch * channels * cut.atoms, dtype=dtype, device=like.device)


def _counts(cut: Partition) -> tuple[int, int]:
    return cut.rows.intervals, cut.columns.intervals


def _strides(cut: Partition, channels: int, channels_last: bool) -> tuple[int, int]:
    """Of the scratch, by channel and by atom."""
    return (1, channels) if channels_last else (cut.atoms, 1)


def _nchw_launch(cut: Partition, planes: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    tiles = {
        "ROWS": triton.next_power_of_2(cut.rows.longest),
        "COLUMNS": min(MAX_COLUMNS, triton.next_power_of_2(width)),
    }
    return (planes, 1 if planes >= MANY_PLANES else cut.rows.intervals), tiles


def _nhwc_launch(cut: Partition, batch: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    tiles = {"PIXELS": PIXEL_TILE, "CHANNELS": min(MAX_CHANNELS, triton.next_power_of_2(channels))}
    return (batch * cut.atoms, triton.cdiv(channels, tiles["CHANNELS"])), tiles
