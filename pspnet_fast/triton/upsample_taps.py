"""The index tables of a sum of upsampled maps, for all levels at once; a *line* is a row of bins of one level."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pspnet_fast.geometry import bilinear_taps
from pspnet_fast.triton.cells import cut_tiles
from pspnet_fast.triton.tables import HostTables, host_tables


@dataclass(frozen=True)
class UpsampleTaps:
    """The tables of one map size and its levels; integers are int32.

    Attributes:
        level: ``[4, L]``, every level's height and width, its first packed bin, and its first entry in ``column_span``.
        line: ``[4, Σh]``, every line's level, its row in the level, the first row of the map that reads it, and one
            past the last.
        column_span: ``[2, Σw]``, the same of columns, for every column of bins.
        row_cell, row_t: ``[L, H]``, the bin that every row reads at every level, and its weight of the next bin.
        column_cell, column_t: ``[L, W]``.
        tile_rows, tile_edge: height of a tile, and ``[tiles + 1]``, the first row of every tile: rows that lie between
            the same two lines at every level, at most ``tile_rows``.
    """

    level: Tensor
    line: Tensor
    column_span: Tensor
    row_cell: Tensor
    row_t: Tensor
    column_cell: Tensor
    column_t: Tensor
    tile_rows: int
    tile_edge: Tensor

    @property
    def tiles(self) -> int:
        return self.tile_edge.shape[0] - 1


def upsample_taps(
    size: tuple[int, int],
    sizes: tuple[tuple[int, int], ...],
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> UpsampleTaps:
    """The tables for maps of ``size`` and levels of ``sizes``, weights in ``dtype``."""
    return _upsample_taps(size, sizes, align_corners, dtype).on(device)


@functools.lru_cache(maxsize=64)
def _upsample_taps(
    size: tuple[int, int], sizes: tuple[tuple[int, int], ...], align_corners: bool, dtype: torch.dtype
) -> HostTables[UpsampleTaps]:
    heights, widths = zip(*sizes, strict=True)
    (row_cell, row_t), (column_cell, column_t) = (
        map(torch.stack, zip(*(bilinear_taps(k, n, align_corners) for k in sides), strict=True))
        for n, sides in zip(size, (heights, widths), strict=True)
    )
    changes = (row_cell.diff(dim=1) != 0).any(dim=0).nonzero().flatten() + 1
    tile_rows, tiles = cut_tiles([0, *changes.tolist(), size[0]])
    first_bin, first_column = (list(accumulate([0, *sides]))[:-1] for sides in ([h * w for h, w in sizes], widths))
    lines = [(level, row) for level, h in enumerate(heights) for row in range(h)]
    return host_tables(
        UpsampleTaps(
            level=torch.tensor([heights, widths, first_bin, first_column], dtype=torch.int32, device="cpu"),
            line=torch.cat([torch.tensor(lines, dtype=torch.int32, device="cpu").mT, _spans(row_cell, heights)]),
            column_span=_spans(column_cell, widths),
            row_cell=row_cell.int(),
            row_t=row_t.to(dtype),
            column_cell=column_cell.int(),
            column_t=column_t.to(dtype),
            tile_rows=tile_rows,
            tile_edge=torch.tensor(tiles, dtype=torch.int32, device="cpu"),
        )
    )


def _spans(cells: Tensor, sides: Sequence[int]) -> Tensor:
    """``[2, Σk]``: of every node the first position that reads it, and one past the last."""
    spans = []
    for cell, k in zip(cells, sides, strict=True):
        edge = torch.searchsorted(cell, torch.arange(k + 1, device="cpu"))
        # A node is read from its own cell and, unless sizes are equal, from the one in front of it.
        begin = edge[:-1] if k == len(cell) else torch.cat([edge[:1], edge[:-2]])
        spans.append(torch.stack([begin, edge[1:]]))
    return torch.cat(spans, dim=1).int()
