"""The cross-entropies of upsampled logits in Triton, without full-resolution logits, for any GPU that Triton reaches.

    forward    every pixel's m = max z and s = Σ exp(z - m)  ->  loss = m + log s - z_y   (cross_entropy_fwd.py)
    gradient   softmax = exp(z - m) / s, again, cell by cell  ->  d total / d logits       (cross_entropy_bwd.py)

A step over B images, two heads of C classes and P pixels takes 4·B·P·C exponentials and three launches: heads of one
shape share each. In memory beyond the gradients stand 24·B·P bytes until the gradient is there (86 MB for 16 crops of
473 x 473). Every sum has one owner and a fixed order: no atomics, the same bits every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pspnet_fast.layout import empty_like_dense
from pspnet_fast.loss_options import LossOptions
from pspnet_fast.triton.cells import Cells, cut_axis
from pspnet_fast.triton.cross_entropy_bwd import cross_entropy_bwd_kernel
from pspnet_fast.triton.cross_entropy_fwd import cross_entropy_fwd_kernel
from pspnet_fast.triton.label_flag import check_watched, watch_labels

# A tile of the forward kernel has a column a thread, one of the gradient kernel a cell; a warp is 32.
COLUMNS = 32
CELLS = (16, 32, 64, 128)
MAX_CLASSES = 8


def upsample_cross_entropy(
    logits: Tensor, target: Tensor, per_pixel: bool, gradient: bool, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of one head's upsampled logits; ``Real`` is float64 for float64 logits, else float32.

    Args:
        logits: ``[B, C, h, w]``, float32, float64, float16 or bfloat16, with any strides.
        target: ``[B, H, W]`` class indices, int64, int32 or uint8.
        per_pixel: a loss per pixel instead of the sum.
        gradient: whether backward will be wanted.
        options: the fields of :class:`pspnet_fast.loss_options.LossOptions`.

    Returns:
        ``losses``: Real, 0-d, or ``[B, H, W]`` if ``per_pixel``. ``divisor``: Real, 0-d, the sum of class weight times
        pixel weight over the pixels that count. ``state``: with ``gradient`` and without ``per_pixel`` the gradient of
        the sum by the logits, Real, in their layout; else empty.

    Raises:
        IndexError: a label out of range (see label_flag.py).
    """
    sums = head_sums([logits], target, per_pixel, gradient, LossOptions(*options))
    return sums.losses[0], sums.divisor, sums.states[0]


def dual_cross_entropy(
    main: Tensor,
    aux: Tensor,
    target: Tensor,
    per_pixel: bool,
    gradient: bool,
    labels: bool,
    correct: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`upsample_cross_entropy` of two heads against one target, and the main head's arg-max.

    Args:
        main: ``[B, C, h, w]``.
        aux: ``[B, C, h', w']``, of main's dtype.
        labels: whether the arg-max is wanted.
        correct: whether the number of pixels is wanted, of those that count, whose arg-max is their label.

    Returns:
        ``(main_losses, aux_losses, divisor, main_state, aux_state, labels, correct)``; ``labels`` is int64
        ``[B, H, W]``, ``correct`` int64 0-d, and each is empty unless wanted.

    Raises:
        IndexError: a label out of range (see label_flag.py).
    """
    given = LossOptions(*options)
    sums = head_sums([main, aux], target, per_pixel, gradient, given, labels=labels, correct=correct)
    (main_losses, aux_losses), (main_state, aux_state) = sums.losses, sums.states
    return main_losses, aux_losses, sums.divisor, main_state, aux_state, sums.labels, sums.correct


class Sums(NamedTuple):
    """What the kernels leave for some heads; fields as the operators return them."""

    losses: list[Tensor]
    divisor: Tensor
    states: list[Tensor]
    labels: Tensor
    correct: Tensor


def class_table(options: LossOptions, classes: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """``[3, C]``: every class's weight, and its parts for the label and, by smoothing, for any class."""
    smoothing = options.label_smoothing
    if options.weight is None and smoothing == 0:
        return None
    weight = options.class_weight(dtype)
    weight = torch.ones(classes, dtype=dtype, device=device) if weight is None else weight
    return torch.stack([weight, weight * (1 - smoothing), weight * (smoothing / classes)])


def head_sums(
    heads: Sequence[Tensor],
    target: Tensor,
    per_pixel: bool,
    gradient: bool,
    options: LossOptions,
    *,
    labels: bool = False,
    correct: bool = False,
) -> Sums:
    """The sums of one or two heads: in the same launches where they are laid out alike, else one after the other."""
    target = target.contiguous()
    noted = watch_labels(target, heads[0].shape[1], options.ignore_index)
    gradient = gradient and not per_pixel
    alike = all(head.shape == heads[0].shape and head.stride() == heads[0].stride() for head in heads)
    groups = [range(len(heads))] if alike else [range(i, i + 1) for i in range(len(heads))]
    with torch.cuda.device_of(target):
        found = [
            _launch(
                [heads[i] for i in group], target, per_pixel, gradient, options, noted,
                labels=labels and 0 in group, correct=correct and 0 in group,
            )
            for group in groups
        ]  # fmt: skip
    check_watched(noted, target.device)
    losses = [loss for sums in found for loss in sums.losses]
    return found[0]._replace(losses=losses, states=[state for sums in found for state in sums.states])


def _launch(
    heads: Sequence[Tensor],
    target: Tensor,
    per_pixel: bool,
    gradient: bool,
    options: LossOptions,
    noted: Tensor | None,
    *,
    labels: bool,
    correct: bool,
) -> Sums:
    """The kernels on heads of one shape and one layout."""
    logits = heads[0]
    (batch, classes, low_height, low_width), (height, width) = logits.shape, target.shape[1:]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    losses = [empty(*target.shape) for _ in heads] if per_pixel else []
    states = [empty_like_dense(head, dtype) if gradient else empty(0) for head in heads]
    best = empty(*(target.shape if labels else (0,)), dtype=torch.int64)
    if target.numel() == 0:
        nothing = [torch.zeros((), dtype=dtype, device=logits.device) for _ in range(3)]
        none_correct = torch.zeros(() if correct else (0,), dtype=torch.int64, device=logits.device)
        return Sums(losses or nothing[: len(heads)], nothing[2], [s.zero_() for s in states], best, none_correct)

    rows = cut_axis(low_height, height, options.align_corners, dtype, logits.device)
    columns = cut_axis(low_width, width, options.align_corners, dtype, logits.device)
    grid = (rows.tiles * triton.cdiv(width, COLUMNS), batch, len(heads))
    table = class_table(options, classes, dtype, logits.device)
    weight = None if options.pixel_weight is None else options.pixel_weight.to(dtype).contiguous()
    partial = empty(len(heads) + 1, grid[0] * batch)
    hits = empty(grid[0] * batch, dtype=torch.int32) if correct else None
    softmax, softmax_label = None, None
    if gradient:
        places = len(heads), batch, height, columns.slots
        softmax = empty(2 if weight is None else 3, *places)
        softmax_label = empty(*places, dtype=torch.int32)

    cross_entropy_fwd_kernel[grid](
        heads[0], heads[-1], target, weight, table,
        rows.cell, rows.t, rows.tile_edge, columns.cell, columns.t, columns.slot,
        softmax, softmax_label, losses[0] if losses else None, losses[-1] if losses else None,
        partial, best if labels else None, hits, noted,
        classes, low_height, low_width, height, width, columns.slots, *logits.stride(), options.ignore_index,
        SMOOTHING=options.label_smoothing != 0, LOWEST=torch.finfo(dtype).min,
        ROWS=rows.tile_rows, COLUMNS=COLUMNS, num_warps=1,
    )  # fmt: skip
    if softmax is not None and softmax_label is not None:
        _launch_gradient(heads, states, softmax, softmax_label, table, rows, columns, options.label_smoothing != 0)
    return Sums(
        losses=losses or [partial[head].sum() for head in range(len(heads))],
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
