"""The index arithmetic of every implementation in Python: bin edges, interpolation taps. As in csrc/geometry.h.

A *pixel* is an input position, a *bin* a pooled average, a *node* a number that is interpolated from, and a *cell* the
pixels between neighbouring nodes. Positions are computed in double, as a float32 index loses digits that weights need.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

LONGEST = 16

# ---- Adaptive pooling -----------------------------------------------------------------------------------------------
#
# Bin i of k over n pixels is [floor(i n / k), ceil((i + 1) n / k)). Between two neighbouring edges every pixel lies in
# the same bins, so an interval (on two axes an *atom*) is the largest piece that need be summed only once. Intervals
# are also cut to at most LONGEST pixels, which changes no bin, so that the work of a program is bounded whatever the
# bins: a lone 1x1 level would otherwise be one program's job.


@dataclass(frozen=True)
class Axis:
    """One axis of ``n`` pixels, cut into intervals.

    Attributes:
        edge: intervals + 1 positions, ascending from 0 to n.
        bin_range: per level, per bin: its first interval, and one past its last.
        bin_pixels: per level, per bin: its number of pixels.
    """

    edge: tuple[int, ...]
    bin_range: tuple[tuple[tuple[int, int], ...], ...]
    bin_pixels: tuple[tuple[int, ...], ...]

    @property
    def intervals(self) -> int:
        return len(self.edge) - 1

    @property
    def longest(self) -> int:
        """The number of pixels in the longest interval."""
        return max(end - begin for begin, end in pairwise(self.edge))


def partition_axis(n: int, bins: tuple[int, ...], longest: int = LONGEST) -> Axis:
    """Cut an axis of ``n`` pixels at the edges of every bin, and intervals above ``longest`` into equal pieces."""
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
        bin_pixels=tuple(tuple(e - b for b, e in level) for level in levels),
    )


def _bins(sides: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Side and index of every bin (or node) of an axis of levels, level after level: int64 ``[Σk]`` each."""
    # Not torch.tensor(), which an export records as a copy that is written to.
    side = torch.cat([torch.full((k,), k, dtype=torch.int64, device=device) for k in sides])
    index = torch.cat([torch.arange(k, device=device) for k in sides])
    return side, index


def bin_averages(n: int, sides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[n, Σk]``: what each of ``n`` pixels adds to the averages of the bins of every size; ``n`` may be symbolic."""
    side, bin_ = _bins(sides, device)
    pixel = torch.arange(n, device=device)[:, None]
    # The edges floor(i n / k) and ceil((i + 1) n / k), without a division.
    member = (((pixel + 1) * side > bin_ * n) & (pixel * side < (bin_ + 1) * n)).to(dtype)
    return member / member.sum(0)


def size_pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """``(h, w)`` of each level, from the list that the operators take."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


# ---- Bilinear interpolation -----------------------------------------------------------------------------------------


def bilinear_taps(nodes: int, n: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The first node of every pixel (int64 ``[n]``, ascending) and the weight of the second (float64), on the CPU.

    The second is :func:`second_node`. Pixels in front of the first node have weight 0 of the second.
    """
    x = torch.arange(n, dtype=torch.float64, device="cpu")
    if align_corners:
        position = x * ((nodes - 1) / (n - 1) if n > 1 else 0.0)
    else:
        position = ((x + 0.5) * (nodes / n) - 0.5).clamp(min=0)
    first = position.long().clamp(max=nodes - 1)
    # Not 0 behind the last node, where it makes no difference but for infinite numbers: PyTorch keeps it, too.
    return first, (position - first).clamp(max=1)


def second_node(first: Tensor, nodes: int, n: int) -> Tensor:
    """The other node of every pixel, as PyTorch has it: the next one, but at equal sizes and at the end the same."""
    return first if nodes == n else (first + 1).clamp(max=nodes - 1)


@functools.lru_cache(maxsize=256)
def tap_matrix(n: int, k: int, align_corners: bool, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each tap of a convolution of odd width ``taps`` reads of an axis upsampled from ``k`` to ``n``.

    Returns:
        ``[n, taps, k]``: entry ``(y, t, i)`` is the weight of node ``i`` at pixel ``y + t - taps // 2``, and zero where
        that lies in the zero padding. With ``taps=1`` this is upsampling itself.
    """
    first, t = bilinear_taps(k, n, align_corners)
    up = torch.zeros(n, k, dtype=torch.float64, device="cpu")
    up.scatter_(1, first[:, None], 1 - t[:, None])
    up.scatter_add_(1, second_node(first, k, n)[:, None], t[:, None])
    return _windows(up, taps).to(device=device, dtype=dtype)


def exported_tap_matrices(
    n: int, sides: Sequence[int], align_corners: bool, taps: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """:func:`tap_matrix` for every ``k`` of ``sides``, recorded by an export: ``n`` may be symbolic.

    A node's weight falls linearly to zero at its neighbours, which needs neither gathering nor scattering, so these are
    operators that every runtime has. A symbolic ``n`` is computed with in float32.
    """
    wide = torch.float32 if isinstance(n, torch.SymInt) else torch.float64
    side, node = (values.to(wide) for values in _bins(sides, device))
    pixel = torch.arange(n, device=device)[:, None] + torch.arange(-(taps // 2), taps // 2 + 1, device=device)
    inside = ((pixel >= 0) & (pixel < n)).to(wide)[..., None]
    at = pixel.to(wide)[..., None]
    if align_corners:
        position = at * (side - 1) / torch.scalar_tensor(n - 1, dtype=wide, device=device).clamp(min=1)
    else:
        position = ((2 * at + 1) * side / torch.scalar_tensor(n, dtype=wide, device=device) - 1) / 2
    distance = position.clamp(min=0).minimum(side - 1) - node
    weights = (1 - distance.abs()).clamp(min=0) * inside
    return list(weights.to(dtype).split(list(sides), dim=2))


def upsample_adjoint(grad: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """The gradient of bilinear upsampling from ``height x width``: gathers ``grad [..., H, W]``, without atomics."""
    rows = tap_matrix(grad.shape[-2], height, align_corners, 1, grad.dtype, grad.device).squeeze(1)
    columns = tap_matrix(grad.shape[-1], width, align_corners, 1, grad.dtype, grad.device).squeeze(1)
    return rows.mT @ (grad @ columns)


def tap_reads(n: int, k: int, align_corners: bool, taps: int) -> Tensor:
    """Int8 of the shape of :func:`tap_matrix`: 1 where a node is read, be its weight 0; 2 where twice, once with 0."""
    first, t = bilinear_taps(k, n, align_corners)
    second = second_node(first, k, n)
    reads = torch.zeros(n, k, dtype=torch.int8, device="cpu")
    reads.scatter_(1, second[:, None], 1)
    reads.scatter_(1, first[:, None], 1 + ((first == second) & (t == 0))[:, None].to(torch.int8))
    return _windows(reads, taps)


def _windows(rows: Tensor, taps: int) -> Tensor:
    """``[n, taps, k]`` from ``[n, k]``: each row with its neighbours, zeros beyond the ends."""
    padded = torch.nn.functional.pad(rows, (0, 0, taps // 2, taps // 2))
    return torch.stack([padded[t : t + len(rows)] for t in range(taps)], dim=1)
