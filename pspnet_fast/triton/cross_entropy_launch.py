"""Launches of the cross-entropy's kernels: geometry, scratch and grids (see cross_entropy.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pspnet_fast.triton.cells import Cells, cut_axis
from pspnet_fast.triton.cross_entropy_backward import cross_entropy_bwd_kernel
from pspnet_fast.triton.cross_entropy_forward import cross_entropy_fwd_kernel
from pspnet_fast.triton.label_flag import check_watched, watch_labels

# A tile of the forward kernel has a column a thread, one of the gradient kernel a cell; a warp is 32.
COLUMNS = 32
CELLS = (16, 32, 64, 128)
MAX_CLASSES = 8


class Sums(NamedTuple):
    """What the kernels leave for some heads; fields as the operators return them."""

    totals: list[Tensor]
    divisor: Tensor
    states: list[Tensor]
    labels: Tensor
    correct: Tensor


class Terms(NamedTuple):
    """The loss: the operators' options but for the pixel weights, which may differ from head to head."""

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    per_pixel: bool
    align_corners: bool

    def class_table(self, classes: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """``[3, C]``: every class's weight, and its parts for the label and, by smoothing, for any class."""
        if self.weight is None and self.label_smoothing == 0:
            return None
        weight = torch.ones(classes, dtype=dtype, device=device) if self.weight is None else self.weight.to(dtype)
        smoothing = self.label_smoothing
        return torch.stack([weight, weight * (1 - smoothing), weight * (smoothing / classes)])


def empty_state(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor in the layout of ``logits`` if that is NCHW or channels_last, else in NCHW."""
    dense = logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last)
    layout = torch.preserve_format if dense else torch.contiguous_format
    return torch.empty_like(logits, dtype=dtype, memory_format=layout)


def head_sums(
    heads: Sequence[Tensor],
    target: Tensor,
    terms: Terms,
    pixel_weights: Sequence[Tensor | None],
    *,
    gradient: bool,
    labels: bool = False,
    correct: bool = False,
) -> Sums:
    """The sums of one or two heads: in the same launches where they are laid out alike, else one after the other."""
    target = target.contiguous()
    noted = watch_labels(target, heads[0].shape[1], terms.ignore_index)
    gradient = gradient and not terms.per_pixel
    alike = all(head.shape == heads[0].shape and head.stride() == heads[0].stride() for head in heads)
    groups = [range(len(heads))] if alike else [range(i, i + 1) for i in range(len(heads))]
    with torch.cuda.device_of(target):
        found = [
            _launch(
                [heads[i] for i in group], target, terms, [pixel_weights[i] for i in group], noted,
                gradient=gradient, labels=labels and 0 in group, correct=correct and 0 in group,
            )
            for group in groups
        ]  # fmt: skip
    check_watched(noted, target.device)
    totals = [total for sums in found for total in sums.totals]
    return found[0]._replace(totals=totals, states=[state for sums in found for state in sums.states])


def _launch(
    heads: Sequence[Tensor],
    target: Tensor,
    terms: Terms,
    pixel_weights: Sequence[Tensor | None],
    noted: Tensor | None,
    *,
    gradient: bool,
    labels: bool,
    correct: bool,
) -> Sums:
    """The kernels on heads of one shape and one layout."""
    logits = heads[0]
    (batch, classes, low_height, low_width), (height, width) = logits.shape, target.shape[1:]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    losses = [empty(*target.shape) for _ in heads] if terms.per_pixel else []
    states = [empty_state(head, dtype) if gradient else empty(0) for head in heads]
    best = empty(*(target.shape if labels else (0,)), dtype=torch.int64)
    if target.numel() == 0:
        nothing = [torch.zeros((), dtype=dtype, device=logits.device) for _ in range(3)]
        none_correct = torch.zeros(() if correct else (0,), dtype=torch.int64, device=logits.device)
        return Sums(losses or nothing[: len(heads)], nothing[2], [s.zero_() for s in states], best, none_correct)

    rows = cut_axis(low_height, height, terms.align_corners, dtype, logits.device)
    columns = cut_axis(low_width, width, terms.align_corners, dtype, logits.device)
    grid = (rows.strips * triton.cdiv(width, COLUMNS), batch, len(heads))
    table = terms.class_table(classes, dtype, logits.device)
    weights = [None if w is None else w.to(dtype).contiguous() for w in pixel_weights]
    partial = empty(len(heads) + 1, grid[0] * batch)
    hits = empty(grid[0] * batch, dtype=torch.int32) if correct else None
    softmax, softmax_label = None, None
    if gradient:
        places = len(heads), batch, height, columns.slots
        softmax = empty(2 if weights[0] is None else 3, *places)
        softmax_label = empty(*places, dtype=torch.int32)

    cross_entropy_fwd_kernel[grid](
        heads[0], heads[-1], target, weights[0], weights[-1], table,
        rows.cell, rows.t, rows.strip_edge, columns.cell, columns.t, columns.slot,
        softmax, softmax_label, losses[0] if losses else None, losses[-1] if losses else None,
        partial, best if labels else None, hits, noted,
        classes, low_height, low_width, height, width, columns.slots, *logits.stride(), terms.ignore_index,
        SMOOTHING=terms.label_smoothing != 0, LOWEST=torch.finfo(dtype).min,
        ROWS=rows.tile, COLUMNS=COLUMNS, num_warps=1,
    )  # fmt: skip
    if softmax is not None and softmax_label is not None:
        _launch_gradient(heads, states, softmax, softmax_label, table, rows, columns, terms.label_smoothing != 0)
    return Sums(
        totals=losses or [partial[head].sum() for head in range(len(heads))],
        divisor=partial[-1].sum(),
        states=states,
        labels=best,
        correct=empty(0, dtype=torch.int64) if hits is None else hits.sum(),
    )


def _launch_gradient(
    heads: Sequence[Tensor],
    states: Sequence[Tensor],
    softmax: Tensor,
    softmax_label: Tensor,
    table: Tensor | None,
    rows: Cells,
    columns: Cells,
    smoothing: bool,
) -> None:
    """Fill ``states``: first from the cell rows of even number, which reach every node, then from the others."""
    batch, classes = heads[0].shape[:2]
    tile = min(MAX_CLASSES, triton.next_power_of_2(classes))
    cells = min(CELLS, key=lambda cells: cells * _cell_blocks(columns.nodes, cells))
    blocks = triton.cdiv(classes, tile) * _cell_blocks(columns.nodes, cells)
    for parity, cell_rows in ((0, (rows.nodes + 1) // 2), (1, rows.nodes // 2)):
        if cell_rows == 0:
            continue
        cross_entropy_bwd_kernel[blocks * cell_rows, batch, len(heads)](
            heads[0], heads[-1], states[0], states[-1], softmax, softmax_label, table,
            rows.edge, rows.t, columns.edge, columns.slot_t,
            classes, rows.nodes, columns.nodes, softmax.shape[3], columns.cell.shape[0], columns.slots,
            *heads[0].stride(), *states[0].stride(),
            PARITY=parity, PIXEL_WEIGHTS=softmax.shape[0] == 3, SMOOTHING=smoothing,
            CLASSES=tile, CELLS=cells, num_warps=max(1, cells // 32),
        )  # fmt: skip


def _cell_blocks(nodes: int, cells: int) -> int:
    """Into how many blocks of ``cells`` the cells of a row fall, where neighbouring blocks share one."""
    return triton.cdiv(max(nodes - 1, 1), cells - 1)
