"""The pyramid's terms of a convolution in Triton: everything but the convolution over x itself, which others do best.

Forward adds them into that convolution's output, in its own layout, with or without normalisation and ReLU behind it;
backward reads the output's gradient once for all levels. Between the kernels (pyramid_conv_fwd.py and
pyramid_conv_bwd.py) travel small tensors in the accumulation dtype: float64 for float64, else float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pspnet_fast.geometry import size_pairs
from pspnet_fast.reference import NormStatistics
from pspnet_fast.triton.pyramid_conv_bwd import (
    levels_bwd_kernel,
    q_bwd_kernel,
    r_bwd_kernel,
    weight_bwd_kernel,
)
from pspnet_fast.triton.pyramid_conv_fwd import pyramid_conv_fwd_kernel, q_fwd_kernel
from pspnet_fast.triton.pyramid_taps import PyramidTaps, pyramid_taps

# The tile that is added to: rows, one after the other, and columns; and the taps that are summed at a time.
ROWS, COLUMNS, TAPS = 4, 64, 16
# Q of some outputs that is kept at a time, in bytes: large levels would take more than their upsampled maps.
Q_BYTES = 256 * 2**20
# R of some images that is kept at a time, in bytes: few enough to stay in a GPU's second-level cache.
R_BYTES = 32 * 2**20


class Tiles(NamedTuple):
    """Of the matrix products: sides along the result, along the sum, and how they are computed."""

    side: int
    depth: int
    num_warps: int
    precision: str


class Problem(NamedTuple):
    """What the launches of one call share."""

    taps: PyramidTaps
    tiles: Tiles
    scratch: torch.dtype
    kernel: dict[str, int]
    sizes: tuple[tuple[int, int], ...]  # of the levels
    first_channel: int  # of the levels, in the weight

    @property
    def packed_bins(self) -> int:
        return sum(h * w for h, w in self.sizes)

    @property
    def kernel_taps(self) -> int:
        return self.kernel["KERNEL_HEIGHT"] * self.kernel["KERNEL_WIDTH"]

    def empty_q(self, batch: int, outputs: int, device: torch.device) -> Tensor:
        """For Q or its gradient: ``[B, packed_bins, kh·kw, O]``."""
        return torch.empty(batch, self.packed_bins, self.kernel_taps, outputs, dtype=self.scratch, device=device)

    def position_blocks(self, batch: int, positions: int) -> int:
        return sum(triton.cdiv(batch * h * w, positions) for h, w in self.sizes)

    def output_runs(self, batch: int, outputs: int) -> list[slice]:
        """Whole tiles of outputs whose Q has at most ``Q_BYTES``; one run at least."""
        tile = max(batch, 1) * self.packed_bins * self.kernel_taps * self.scratch.itemsize * self.tiles.side
        run = max(Q_BYTES // tile, 1) * self.tiles.side
        return [slice(first, first + run) for first in range(0, max(outputs, 1), run)]


def pyramid_conv_add(
    y: Tensor,
    levels: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    align_corners: bool,
    x_first: bool,
    norm: NormStatistics | None = None,
) -> None:
    """Add the levels' terms of the convolution to its output, in place.

    Args:
        y: ``[B, O, H, W]``, the convolution over x, with any strides.
        levels: ``[B, Ck, Σhw]`` of y's dtype, with any strides.
        weight: ``[O, C + L·Ck, kh, kw]`` of y's dtype, with any strides.
        sizes: h and w of each level.
        align_corners, x_first: as for :func:`pspnet_fast.pyramid_conv`.
        norm: if given, y becomes ``relu(batch_norm(y + terms))``.
    """
    if y.numel() == 0:
        return
    problem = _problem(y, levels, weight, sizes, align_corners, x_first)
    with torch.cuda.device_of(y):
        for run in problem.output_runs(*y.shape[:2]):
            statistics = (None,) * 4 if norm is None else tuple(t[run].contiguous() for t in norm[:4])
            _add(problem, y[:, run], levels, weight[run], statistics, 0.0 if norm is None else norm.eps)


def pyramid_conv_levels_backward(
    grad: Tensor,
    levels: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    align_corners: bool,
    x_first: bool,
    grad_levels: Tensor,
    grad_weight: Tensor,
) -> None:
    """Write the gradients by the levels and by their part of the weight.

    Args:
        grad: ``[B, O, H, W]``, with any strides.
        levels, weight, sizes, align_corners, x_first: as for :func:`pyramid_conv_add`.
        grad_levels: ``[B, Ck, Σhw]``, contiguous; empty if it is not wanted.
        grad_weight: of weight's shape, with any strides; x's channels are left alone. Empty if it is not wanted.
    """
    if grad_levels.numel() == 0 and grad_weight.numel() == 0:
        return
    problem = _problem(grad, levels, weight, sizes, align_corners, x_first)
    runs = problem.output_runs(*grad.shape[:2])
    total = grad_levels if len(runs) == 1 else torch.empty_like(grad_levels, dtype=problem.scratch)
    with torch.cuda.device_of(grad):
        for run in runs:
            q = _q_gradient(problem, grad[:, run])
            if grad_weight.numel() > 0:
                _launch_weight_gradient(problem, q, levels, grad_weight[run])
            if grad_levels.numel() > 0:
                _launch_level_gradient(problem, q, weight[run], total, add=run.start > 0)
    if total is not grad_levels:
        grad_levels.copy_(total)


def _problem(
    y: Tensor, levels: Tensor, weight: Tensor, sizes: Sequence[int], align_corners: bool, x_first: bool
) -> Problem:
    scratch = torch.float64 if y.dtype == torch.float64 else torch.float32
    kernel, pairs = (weight.shape[2], weight.shape[3]), tuple(size_pairs(sizes))
    return Problem(
        taps=pyramid_taps(y.shape[2], y.shape[3], pairs, kernel, align_corners, scratch, y.device),
        tiles=tiles_for(y.dtype, hip=torch.version.hip is not None),
        scratch=scratch,
        kernel={"KERNEL_HEIGHT": kernel[0], "KERNEL_WIDTH": kernel[1]},
        sizes=pairs,
        first_channel=weight.shape[1] - len(pairs) * levels.shape[1] if x_first else 0,
    )


def tiles_for(dtype: torch.dtype, hip: bool) -> Tiles:
    """The tiles for maps of ``dtype``, on AMD's GPUs (``hip``) or NVIDIA's."""
    if dtype == torch.float64:
        return Tiles(32, 16, 4, "ieee")
    # Float16 and bfloat16 are TF32 numbers, and of the float32 between them TF32 keeps more bits than either.
    if dtype == torch.float32 or hip:
        return Tiles(64, 16, 8, "ieee")
    return Tiles(64, 32, 8, "tf32")


def _tile(count: int, limit: int) -> int:
    """A side of a matrix product's tile, for ``count`` elements."""
    return min(limit, max(16, triton.next_power_of_2(count)))


def _add(
    problem: Problem, y: Tensor, levels: Tensor, weight: Tensor, statistics: Sequence[Tensor | None], eps: float
) -> None:
    taps, tiles = problem.taps, problem.tiles
    batch, outputs, height, width = y.shape
    q = problem.empty_q(batch, outputs, y.device)
    tap_count = taps.column_taps.shape[1]
    columns = _tile(width, COLUMNS)
    blocks = triton.cdiv(outputs, tiles.side) * triton.cdiv(width, columns) * triton.cdiv(height, ROWS)
    special = _launch_q(problem, levels, weight, q)
    pyramid_conv_fwd_kernel[blocks, batch](
        q, special, y, *statistics, taps.level, taps.tap, taps.row_cell, taps.row_t,
        taps.column_taps, taps.column_reads, len(problem.sizes), problem.packed_bins, tap_count, outputs, height, width,
        *y.stride(), EPS=eps, ROWS=ROWS, COLUMNS=columns, OUTPUTS=tiles.side,
        TAPS=TAPS, PRECISION=tiles.precision, num_warps=tiles.num_warps, **problem.kernel,
    )  # fmt: skip


def _launch_q(problem: Problem, levels: Tensor, weight: Tensor, q: Tensor) -> Tensor:
    """Writes Q; returns, int32 ``[1]``, whether a number of it is infinite or NaN."""
    special = torch.zeros(1, dtype=torch.int32, device=q.device)
    tiles = problem.tiles
    batch, packed_bins, kernel_taps, outputs = q.shape
    level_channels = levels.shape[1]
    blocks = triton.cdiv(outputs, tiles.side) * kernel_taps * problem.position_blocks(batch, tiles.side)
    q_fwd_kernel[(blocks,)](
        levels, weight, q, special, problem.taps.level,
        batch, level_channels, len(problem.sizes), packed_bins, outputs, problem.first_channel,
        *levels.stride(), *weight.stride(),
        POSITIONS=tiles.side, OUTPUTS=tiles.side, DEPTH=tiles.depth, PRECISION=tiles.precision, **problem.kernel,
        num_warps=tiles.num_warps,
    )  # fmt: skip
    return special


def _q_gradient(problem: Problem, grad: Tensor) -> Tensor:
    """The gradient of Q ``[B, packed_bins, kh·kw, O]``: some images at a time, columns first."""
    taps, tiles = problem.taps, problem.tiles
    batch, outputs, height, width = grad.shape
    tap_count, row_tap_count = taps.column_taps.shape[1], taps.row_taps.shape[1]
    q = problem.empty_q(batch, outputs, grad.device)
    row_bytes = tap_count * outputs * q.element_size()
    images = max(1, min(batch, R_BYTES // max(1, height * row_bytes)))
    r = q.new_empty(images, height, tap_count, outputs)
    output_blocks = triton.cdiv(outputs, tiles.side)
    options = {"OUTPUTS": tiles.side, "PRECISION": tiles.precision, "num_warps": tiles.num_warps}
    for first in range(0, batch, images):
        part = grad[first : first + images]
        r_bwd_kernel[height * output_blocks, part.shape[0]](
            part, r, taps.column_taps, taps.column_reads, tap_count, outputs, height, width, *grad.stride(),
            COLUMNS=_tile(width, tiles.depth), TAPS=_tile(tap_count, tiles.side), **options,
        )  # fmt: skip
        q_bwd_kernel[tap_count * output_blocks, part.shape[0]](
            r, q[first:], taps.level, taps.tap, taps.row_taps, taps.row_reads,
            len(problem.sizes), problem.packed_bins, tap_count, row_tap_count, outputs, height,
            LINES=_tile(problem.kernel["KERNEL_HEIGHT"] * taps.sides[0], tiles.side), ROWS=_tile(height, tiles.depth),
            **problem.kernel, **options,
        )  # fmt: skip
    return q


def _level_arguments(problem: Problem, levels: Tensor, outputs: int) -> tuple[Tensor | int, ...]:
    """What the kernels of both gradients take behind their tensors; of ``levels`` the shape alone."""
    batch, channels = levels.shape[:2]
    counts = len(problem.sizes), problem.packed_bins, outputs, problem.first_channel
    return problem.taps.level, batch, channels, *counts


def _launch_weight_gradient(problem: Problem, q: Tensor, levels: Tensor, grad_weight: Tensor) -> None:
    tiles, outputs = problem.tiles, q.shape[3]
    blocks = triton.cdiv(outputs, tiles.side) * triton.cdiv(levels.shape[1], tiles.side) * problem.kernel_taps
    weight_bwd_kernel[blocks, len(problem.sizes)](
        q, levels, grad_weight, *_level_arguments(problem, levels, outputs), *levels.stride(), *grad_weight.stride(),
        OUTPUTS=tiles.side, CHANNELS=tiles.side, DEPTH=tiles.depth, PRECISION=tiles.precision,
        num_warps=tiles.num_warps, **problem.kernel,
    )  # fmt: skip


def _launch_level_gradient(problem: Problem, q: Tensor, weight: Tensor, grad_levels: Tensor, *, add: bool) -> None:
    tiles, (batch, channels) = problem.tiles, grad_levels.shape[:2]
    side = min(tiles.side, 32)  # long sums for a small result: many programs
    blocks = triton.cdiv(channels, side) * problem.position_blocks(batch, side)
    levels_bwd_kernel[(blocks,)](
        q, weight, grad_levels, *_level_arguments(problem, grad_levels, weight.shape[0]), *weight.stride(),
        ADD=add, POSITIONS=side, CHANNELS=side, DEPTH=tiles.depth, PRECISION=tiles.precision, **problem.kernel,
    )  # fmt: skip
