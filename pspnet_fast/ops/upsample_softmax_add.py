"""Class probabilities of upsampled logits, added into a map that stands for many of them.

Evaluation over scales, windows and mirror images averages probabilities at full resolution. Each part of that average
is low-resolution logits until it is added: neither its full-resolution logits nor its probabilities exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops.checks import check_map, check_size, check_tensor, same_device
from pspnet_fast.ops.operator import Operator
from pspnet_fast.reference import AxisTaps


def upsample_softmax_add(
    total: Tensor,
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = True,
    flip: bool = False,
    weight: float = 1.0,
    rows: AxisTaps | None = None,
    columns: AxisTaps | None = None,
) -> Tensor:
    """Add ``weight * softmax(upsample(logits))`` into ``total``, in place, for inference.

    Args:
        total: ``[B, C, H, W]`` of any strides, so a window of a larger map too; float32, or float64 for float64 logits.
        logits: ``[B, C, h, w]``, floating-point; interpolated and summed in float32 at least.
        size: ``(height, width)`` that the logits are upsampled to, bilinearly; 1 to 2^24 each.
        align_corners: as in ``torch.nn.functional.interpolate``.
        flip: the logits are those of the mirrored image: the upsampled map is mirrored back.
        weight: of what is added.
        rows: which two rows of the upsampled (and mirrored) map each row of ``total`` is read from, and their weights:
            for a resized, cropped or averaged map. Row ``i`` from row ``i`` where None; then H is ``height``.
            A position outside the map is an error on a CPU; on a GPU, where nothing may wait for it, the nearest row is
            read.
        columns: the same along W.

    Returns:
        ``total``.

    Raises:
        ValueError, TypeError: a bad shape, size, dtype, device or position.
        RuntimeError: ``total`` or ``logits`` need a gradient; there is none.

    The same bits in every run and for every number of threads.
    """
    check_map("total", total)
    check_map("logits", logits)
    check_size(size)
    if total.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"total must be [{logits.shape[0]}, {logits.shape[1]}, H, W] for logits {tuple(logits.shape)}, "
            f"not {tuple(total.shape)}"
        )
    expected = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if total.dtype != expected:
        raise TypeError(f"total must be {expected} for logits of {logits.dtype}, not {total.dtype}")
    same_device("total", total, "logits", logits)
    if torch.is_grad_enabled() and (total.requires_grad or logits.requires_grad):
        raise RuntimeError(
            "upsample_softmax_add has no gradient, but total or logits need one; call it under torch.no_grad() or "
            "detach them"
        )
    tables = [*_tables("rows", rows, total, size, 2), *_tables("columns", columns, total, size, 3)]
    ADD(total, logits.detach(), *size, align_corners, flip, float(weight), *tables)
    return total


def _tables(name: str, taps: AxisTaps | None, total: Tensor, size: Sequence[int], dim: int) -> list[Tensor | None]:
    """Of one axis as the kernels take them: contiguous, int32 and of ``total``'s dtype; None where not given."""
    if taps is None:
        if total.shape[dim] != size[dim - 2]:
            raise ValueError(
                f"total must be [B, C, {size[0]}, {size[1]}] where rows and columns are not given, "
                f"not {tuple(total.shape)}"
            )
        return [None, None]
    for field, table in zip(taps._fields, taps, strict=True):
        check_tensor(f"{name}.{field}", table)
        if table.shape != (total.shape[dim], 2):
            raise ValueError(f"{name}.{field} must be [{total.shape[dim]}, 2] for total, not {list(table.shape)}")
        same_device(f"{name}.{field}", table, "total", total)
    if taps.position.is_floating_point() or not taps.weight.is_floating_point():
        raise TypeError(
            f"{name} must be AxisTaps of integers and floating-point weights, not of {taps.position.dtype} and "
            f"{taps.weight.dtype}"
        )
    return [taps.position.to(torch.int32).contiguous(), taps.weight.to(total.dtype).contiguous()]


def _define(total: Tensor, logits: Tensor, *options: Any) -> None:
    height, width, align_corners, flip, weight, *tables = options
    rows, columns = (None if pair[0] is None else AxisTaps(*pair) for pair in (tables[:2], tables[2:]))
    given = {"align_corners": align_corners, "flip": flip, "weight": weight, "rows": rows, "columns": columns}
    reference.upsample_softmax_add(total, logits, (height, width), **given)


def _add(total: Tensor, logits: Tensor, *options: Any) -> None:
    # Image by image, so that full-resolution probabilities exist for one at a time.
    for image, low in zip(total.split(1), logits.split(1), strict=True):
        _define(image, low, *options)


ADD = Operator(
    "upsample_softmax_add",
    fake=lambda *arguments: None,
    definition=_define,
    composition=_add,
    composed=True,
    triton="upsample_softmax_add:upsample_softmax_add",
)
