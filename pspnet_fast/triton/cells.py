"""The index tables of bilinear upsampling: every axis cut into cells, the pixels between two neighbouring nodes.

Pixel ``x`` of ``n`` lies in cell ``i`` if it reads ``(1 - t) · node[i] + t · node[i + 1]``; the last cell has no second
node, and reads its first one twice. The pixels of a cell are neighbours, so a cell is an interval. Positions are
computed in double, as a float32 index loses digits that the weights need.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pspnet_fast.geometry import bilinear_taps
from pspnet_fast.triton.tables import HostTables, host_tables

# Relative cost of a tile of the forward kernel: what a pixel takes, and what its column takes once for all rows.
PIXEL_COST, COLUMN_COST = 10, 8
TILE_ROWS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Cells:
    """The tables of one axis, from ``nodes`` to ``n`` positions; integers are int32.

    *Slots* are another order of the positions, ``longest · nodes`` in number: slot ``k · nodes + i`` is the k-th
    position of cell i, so that neighbouring cells' k-th positions are neighbours in memory. Slots past a cell's end
    stay unused.

    Attributes:
        nodes: how many nodes there are, and cells.
        longest: the number of positions in the longest cell.
        cell: ``[n]``, the cell of every position.
        t: ``[n]``, its weight of the cell's second node.
        edge: ``[nodes + 1]``, the first position of every cell.
        slot: ``[n]``, the slot of every position.
        slot_t: ``[longest · nodes]``, ``t`` by slot.
        tile_rows: the height of a tile.
        tile_edge: ``[tiles + 1]``, the first position of every tile, a part of a cell, of at most
            ``tile_rows`` positions.
    """

    nodes: int
    longest: int
    cell: Tensor
    t: Tensor
    edge: Tensor
    slot: Tensor
    slot_t: Tensor
    tile_rows: int
    tile_edge: Tensor

    @property
    def tiles(self) -> int:
        return self.tile_edge.shape[0] - 1

    @property
    def slots(self) -> int:
        return self.slot_t.shape[0]


def cut_axis(nodes: int, n: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Cells:
    """The tables for an axis of ``n`` positions, weights in ``dtype``."""
    return _cut_axis(nodes, n, align_corners, dtype).on(device)


@functools.lru_cache(maxsize=64)
def _cut_axis(nodes: int, n: int, align_corners: bool, dtype: torch.dtype) -> HostTables[Cells]:
    cell, t = bilinear_taps(nodes, n, align_corners)
    edge = torch.searchsorted(cell, torch.arange(nodes + 1, device="cpu"))
    counts = edge.diff()
    slot = (torch.arange(n, device="cpu") - edge[cell]) * nodes + cell
    longest = int(counts.max())
    slot_t = torch.zeros(longest * nodes, dtype=torch.float64, device="cpu").index_copy_(0, slot, t)
    tile_rows, tiles = cut_tiles(edge.tolist())
    return host_tables(
        Cells(
            nodes=nodes,
            longest=longest,
            cell=cell.int(),
            t=t.to(dtype),
            edge=edge.int(),
            slot=slot.int(),
            slot_t=slot_t.to(dtype),
            tile_rows=tile_rows,
            tile_edge=torch.tensor(tiles, dtype=torch.int32, device="cpu"),
        )
    )


def cut_tiles(edge: list[int]) -> tuple[int, list[int]]:
    """The height of a tile that wastes least on these cells, and the first rows of the tiles it cuts them into."""

    def tiles(height: int) -> list[int]:
        return [first for begin, end in pairwise(edge) for first in range(begin, end, height)]

    rows = min(TILE_ROWS, key=lambda rows: len(tiles(rows)) * (rows * PIXEL_COST + COLUMN_COST))
    return rows, [*tiles(rows), edge[-1]]
