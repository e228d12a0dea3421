"""The index tables of the pooling kernels: both axes cut at the bin edges of every level (csrc/geometry.h, Partition).

Bin ``i`` of ``k`` over ``n`` cells is ``[floor(i n / k), ceil((i + 1) n / k))``. Between two neighbouring edges every
cell lies in the same bins, so an interval (on two axes an *atom*) is the largest piece that need be summed only once.
Here intervals are also cut to at most ``LONGEST`` cells, which changes no bin, so that a program's share of work is
bounded whatever the bins: a lone 1x1 level would otherwise be one program's job.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

LONGEST = 16


@dataclass(frozen=True)
class Axis:
    """One axis of ``n`` cells, cut into intervals.

    Attributes:
        edge: intervals + 1 positions, ascending from 0 to n.
        bin_range: per level, per bin: its first interval, and one past its last.
        bin_cells: per level, per bin: its number of cells.
    """

    edge: tuple[int, ...]
    bin_range: tuple[tuple[tuple[int, int], ...], ...]
    bin_cells: tuple[tuple[int, ...], ...]

    @property
    def intervals(self) -> int:
        return len(self.edge) - 1

    @property
    def longest(self) -> int:
        """The number of cells in the longest interval."""
        return max(end - begin for begin, end in pairwise(self.edge))


def partition_axis(n: int, bins: tuple[int, ...], longest: int = LONGEST) -> Axis:
    """Cut an axis of ``n`` cells at the edges of every bin, and intervals over ``longest`` cells into equal pieces."""
    levels = [[(i * n // k, -((-(i + 1) * n) // k)) for i in range(k)] for k in bins]
    coarse = sorted({edge for level in levels for span in level for edge in span})
    fine = [0]
    for begin, end in pairwise(coarse):
        pieces = -((begin - end) // longest)
        fine += [begin + (end - begin) * piece // pieces for piece in range(1, pieces + 1)]
    interval_at = {edge: index for index, edge in enumerate(fine)}
    return Axis(
        edge=tuple(fine),
        bin_range=tuple(tuple((interval_at[b], interval_at[e]) for b, e in level) for level in levels),
        bin_cells=tuple(tuple(e - b for b, e in level) for level in levels),
    )


@dataclass(frozen=True)
class Partition:
    """The tables of one map size, on one device; all int32.

    Attributes:
        rows, columns: the axes, as they are known on the host.
        row_edge: ``[row intervals + 1]``.
        column_edge: ``[column intervals + 1]``.
        column_interval: ``[W]``, the interval of every column.
        cell: ``[6, Σk²]``, for every pooled cell, in packed order: its first row interval, one past the last, the same
            for columns, and the numbers of rows and of columns that it averages over.
    """

    rows: Axis
    columns: Axis
    row_edge: Tensor
    column_edge: Tensor
    column_interval: Tensor
    cell: Tensor

    @property
    def atoms(self) -> int:
        return self.rows.intervals * self.columns.intervals

    @property
    def cells(self) -> int:
        return self.cell.shape[1]


@functools.lru_cache(maxsize=64)
def partition(height: int, width: int, bins: tuple[int, ...], device: torch.device) -> Partition:
    """The tables for maps of ``height x width``; made once a size and device, and copied without synchronisation."""
    rows, columns = partition_axis(height, bins), partition_axis(width, bins)
    cell = [
        (*rows.bin_range[level][i], *columns.bin_range[level][j], rows.bin_cells[level][i], columns.bin_cells[level][j])
        for level, k in enumerate(bins)
        for i in range(k)
        for j in range(k)
    ]

    def table(values: object) -> Tensor:
        host = torch.tensor(values, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
        return host.to(device, non_blocking=True)

    return Partition(
        rows=rows,
        columns=columns,
        row_edge=table(rows.edge),
        column_edge=table(columns.edge),
        column_interval=table([bisect_right(columns.edge, w) - 1 for w in range(width)]),
        cell=table(list(zip(*cell, strict=True))),
    )
