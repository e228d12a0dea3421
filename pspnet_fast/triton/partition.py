"""The index tables of the pooling kernels: both axes cut at the bin edges of every level (see geometry.py)."""

from __future__ import annotations

import functools
from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from pspnet_fast.geometry import Axis, partition_axis
from pspnet_fast.triton.tables import HostTables, host_tables


@dataclass(frozen=True)
class Partition:
    """The tables of one map size; all int32.

    Attributes:
        rows, columns: the axes, as they are known on the host.
        row_edge: ``[row intervals + 1]``.
        column_edge: ``[column intervals + 1]``.
        column_interval: ``[W]``, the interval of every column.
        bin: ``[6, Σk²]``, for every bin, in packed order: its first row interval, one past the last, the same
            for columns, and the numbers of rows and of columns that it averages over.
    """

    rows: Axis
    columns: Axis
    row_edge: Tensor
    column_edge: Tensor
    column_interval: Tensor
    bin: Tensor

    @property
    def atoms(self) -> int:
        return self.rows.intervals * self.columns.intervals

    @property
    def packed_bins(self) -> int:
        return self.bin.shape[1]


def partition(height: int, width: int, bins: tuple[int, ...], device: torch.device) -> Partition:
    """The tables for maps of ``height x width``."""
    return _partition(height, width, bins).on(device)


@functools.lru_cache(maxsize=64)
def _partition(height: int, width: int, bins: tuple[int, ...]) -> HostTables[Partition]:
    rows, columns = partition_axis(height, bins), partition_axis(width, bins)
    bin = [
        (
            *rows.bin_range[level][i],
            *columns.bin_range[level][j],
            rows.bin_pixels[level][i],
            columns.bin_pixels[level][j],
        )
        for level, k in enumerate(bins)
        for i in range(k)
        for j in range(k)
    ]

    def table(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cpu")

    return host_tables(
        Partition(
            rows=rows,
            columns=columns,
            row_edge=table(rows.edge),
            column_edge=table(columns.edge),
            column_interval=table([bisect_right(columns.edge, w) - 1 for w in range(width)]),
            bin=table(list(zip(*bin, strict=True))),
        )
    )
