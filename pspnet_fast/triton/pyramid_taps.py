"""The index tables of the kernels on upsampled levels, for all levels of a pyramid at once.

A *line* is a row of bins of one level: ``Σh`` lines for levels of ``(h, w)``, in packed order. Interpolation weights
come in two forms: sparse, a bin and its weight ``t`` for every position (see cells.py), and dense, a matrix that a
whole axis is multiplied by.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pspnet_fast.geometry import bilinear_taps, tap_matrix, tap_reads
from pspnet_fast.triton.cells import cut_tiles
from pspnet_fast.triton.tables import HostTables, host_tables


@dataclass(frozen=True)
class PyramidTaps:
    """The tables of one map size, levels of ``(h, w)`` and kernel; integers are int32.

    Attributes:
        sides: the largest height of a level, and the largest width.
        level: ``[4, L]``, every level's height, width, first packed bin, and first column of all levels' ``Σw``.
        line: ``[2, Σh]``, every line's level, and its row in the level.
        line_span: ``[2, Σh]``, the first row of the map that reads the line, and one past the last.
        tap: ``[4, Σ kw·w]``, for every column of ``column_taps`` its level, and the first bin of its column of bins
            (both as in ``level``), its tap, and its first entry in a row of ``row_taps``.
        row_cell, row_t: ``[L, H]``, the bin that every row reads at every level, and its weight of the next bin.
        column_cell, column_t: ``[L, W]``.
        row_taps: ``[H, Σ kh·h]``, what the taps of every output row read: (level, tap, bin), see ``tap_matrix``.
        column_taps: ``[W, Σ kw·w]``.
        row_reads, column_reads: of the same shapes, int8: 1 where the bin is read, be its weight 0; 2 where it is read
            twice, once with weight 0; else 0.
        tile_rows, tile_edge: height of a tile, and ``[tiles + 1]``, the first row of every tile: rows that lie between
            the same two lines at every level, at most ``tile_rows``.
    """

    sides: tuple[int, int]
    level: Tensor
    line: Tensor
    line_span: Tensor
    tap: Tensor
    row_cell: Tensor
    row_t: Tensor
    column_cell: Tensor
    column_t: Tensor
    row_taps: Tensor
    column_taps: Tensor
    row_reads: Tensor
    column_reads: Tensor
    tile_rows: int
    tile_edge: Tensor

    @property
    def tiles(self) -> int:
        return self.tile_edge.shape[0] - 1


def pyramid_taps(
    height: int,
    width: int,
    sizes: tuple[tuple[int, int], ...],
    kernel: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> PyramidTaps:
    """The tables for maps of ``height x width``, weights in ``dtype``."""
    return _pyramid_taps(height, width, sizes, kernel, align_corners, dtype).on(device)


@functools.lru_cache(maxsize=64)
def _pyramid_taps(
    height: int,
    width: int,
    sizes: tuple[tuple[int, int], ...],
    kernel: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype,
) -> HostTables[PyramidTaps]:
    def table(values: object, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device="cpu")

    host = torch.device("cpu")
    heights, widths = zip(*sizes, strict=True)
    axes = (height, heights, kernel[0]), (width, widths, kernel[1])
    (row_cell, row_t), (column_cell, column_t) = (
        map(torch.stack, zip(*(bilinear_taps(k, n, align_corners) for k in sides), strict=True)) for n, sides, _ in axes
    )
    row_taps, column_taps = (
        torch.cat([tap_matrix(n, k, align_corners, taps, torch.float64, host).flatten(1) for k in sides], dim=1)
        for n, sides, taps in axes
    )
    row_reads, column_reads = (
        torch.cat([tap_reads(n, k, align_corners, taps).flatten(1) for k in sides], dim=1) for n, sides, taps in axes
    )
    changes = (row_cell.diff(dim=1) != 0).any(dim=0).nonzero().flatten() + 1
    tile_rows, tiles = cut_tiles([0, *changes.tolist(), height])

    counts = [h * w for h, w in sizes], heights, widths
    first_bin, first_line, first_column = (list(accumulate([0, *numbers]))[:-1] for numbers in counts)
    lines = [(level, i) for level, h in enumerate(heights) for i in range(h)]
    taps = [
        (level, first_bin[level] + j, tap, kernel[0] * first_line[level])
        for level, w in enumerate(widths)
        for tap in range(kernel[1])
        for j in range(w)
    ]
    return host_tables(
        PyramidTaps(
            sides=(max(heights), max(widths)),
            level=table([heights, widths, first_bin, first_column]),
            line=table(list(zip(*lines, strict=True))),
            line_span=table(_line_spans(height, heights, align_corners)),
            tap=table(list(zip(*taps, strict=True))),
            row_cell=table(row_cell),
            row_t=table(row_t, dtype),
            column_cell=table(column_cell),
            column_t=table(column_t, dtype),
            row_taps=table(row_taps, dtype),
            column_taps=table(column_taps, dtype),
            row_reads=table(row_reads, torch.int8),
            column_reads=table(column_reads, torch.int8),
            tile_rows=tile_rows,
            tile_edge=table(tiles),
        )
    )


def _line_spans(height: int, heights: tuple[int, ...], align_corners: bool) -> Tensor:
    """``[2, Σh]``: of every line the rows of the map between the first and the last that read it."""
    reads = torch.cat([tap_reads(height, k, align_corners, 1).squeeze(1) for k in heights], dim=1).mT > 0
    rows = torch.arange(height, device="cpu")
    begin = torch.where(reads, rows, height).amin(dim=1)
    end = torch.where(reads, rows + 1, 0).amax(dim=1)
    return torch.stack([torch.minimum(begin, end), end])
