"""What is counted: every operator that has kernels, in both layouts and in two dtypes, at two shapes of PSPNet's.

Rows are as long as in training and inference (60 or 90 columns for crops of 473 or 713 pixels, 256 for Cityscapes), and
channels as many as a block takes. There are fewer images, rows of logits and NCHW channels: each is more blocks of the
same kind.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cuda_operators import Operators
from torch import Tensor
from torch.utils._pytree import tree_leaves

BINS = (1, 2, 3, 6)
PACKED = sum(k * k for k in BINS)
SIZES = [k for k in BINS for _ in "hw"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
EPS = 1e-5


@dataclass(frozen=True)
class Kind:
    """Of the tensors of a case."""

    layout: str
    dtype: str

    @property
    def channels_last(self) -> bool:
        return self.layout == "channels_last"

    def values(self, *shape: int) -> Tensor:
        """Numbers between -2 and 2 that look random; a map in the layout."""
        count = torch.Size(shape).numel()
        numbers = (torch.arange(count) * 40503 % 65521).to(torch.float32).div_(16384).sub_(2).to(DTYPES[self.dtype])
        values = numbers.view(shape)
        return values.contiguous(memory_format=LAYOUTS[self.layout]) if len(shape) == 4 else values

    def norm(self, channels: int) -> list[Tensor]:
        """Mean, variance, gamma and beta."""
        return [self.values(channels), self.values(channels).abs() + 1, self.values(channels), self.values(channels)]


Case = Callable[[Kind, int], object]


def pool(kind: Kind, side: int) -> None:
    x = kind.values(1, 256 if kind.channels_last else 8, side, side)
    pooled = ops().pyramid_pool(x, BINS)
    ops().pyramid_pool_backward(pooled, side, side, BINS, kind.channels_last)
    ops().pyramid_pool_backward_add(x, pooled, BINS)


def levels(kind: Kind, side: int) -> None:
    x, norm = kind.values(1, 64, side // 5, side), kind.norm(64)
    weights = [kind.values(64, 64, 1, 1) for _ in BINS]
    ops().pyramid_levels(x, BINS, weights, *([part] * len(BINS) for part in norm), [EPS] * len(BINS))


def concat(kind: Kind, side: int) -> None:
    channels = 256 if kind.channels_last else 8
    x, packed = kind.values(1, channels, side // 5, side), kind.values(1, channels, PACKED)
    whole = ops().pyramid_concat(x, packed, BINS, True, True)
    ops().pyramid_concat_backward(whole, channels, BINS, True, True)


def conv(kind: Kind, side: int) -> None:
    x, packed = kind.values(1, 4, side // 5, side), kind.values(1, 16, PACKED)
    weight = kind.values(32, 4 + 16 * len(BINS), 3, 3)
    y = ops().pyramid_conv(x, packed, weight, None, SIZES, True, True)
    ops().pyramid_conv_backward(y, x, packed, weight, SIZES, True, True, [False, True, True])


def add_levels(kind: Kind, side: int) -> None:
    base = kind.values(1, 32 if kind.channels_last else 4, side // 5, side)
    packed = kind.values(1, base.shape[1], PACKED)
    y = ops().upsample_add(packed, base, side // 5, side, SIZES, True, kind.channels_last)
    ops().upsample_add_backward(y, SIZES, True)


def losses(kind: Kind, columns: int) -> None:
    """19 classes of Cityscapes, or 150 of ADE20K."""
    classes, rows = (19 if columns == 256 else 150), 2
    logits, labels = kind.values(1, classes, rows, columns), labels_of(rows, columns, classes)
    options = (None, None, 255, 0.0, True)
    size = labels.shape[1:]
    ops().upsample_cross_entropy(logits, labels, False, False, *options)
    ops().dual_cross_entropy(logits, logits.clone(), labels, False, True, False, False, *options)
    ops().upsample_argmax(logits, *size, True, torch.int64)
    total = torch.zeros(1, classes, *size)
    ops().upsample_softmax_add(total, logits, *size, True, False, 1.0, None, None, None, None)


def labels_of(rows: int, columns: int, classes: int) -> Tensor:
    """8 pixels a cell, in pieces of 40 x 40 pixels with slanted borders; some of them are left out."""
    height, width = 8 * rows - 7, 2048 if columns == 256 else 8 * columns - 7
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    piece = (x + y // 2) // 40 * 7 + y // 40 * 3
    return torch.where(piece % 9 == 0, 255, piece % classes)[None]


def ops() -> Any:
    return torch.ops.pspnet_fast


# By name, at which sides (or columns of logits).
CASES: dict[Case, tuple[int, int]] = {
    pool: (60, 90), levels: (60, 90), concat: (60, 90), conv: (60, 90), add_levels: (60, 90), losses: (60, 256),
}  # fmt: skip


def cases() -> Iterator[tuple[Case, Kind, int]]:
    for case, sides in CASES.items():
        for layout in LAYOUTS:
            for dtype in DTYPES:
                for side in sides:
                    yield case, Kind(layout, dtype), side


class CountedOperators(Operators):
    """Runs each call once, and counts it."""

    def __init__(self, library: str) -> None:
        ctypes.CDLL(library).cuda_on_cpu_place_tensors()
        super().__init__(library, orders=(0,))
        self.counts: list[dict[str, object]] = []

    def _run(self, operator: Any, order: int, arguments: Sequence[Any]) -> tuple[Any, dict[int, Tensor]]:
        self.control.cuda_on_cpu_start_counting()
        results, written = super()._run(operator, order, arguments)
        with tempfile.NamedTemporaryFile("r") as file:
            self.control.cuda_on_cpu_stop_counting(file.name.encode())
            lines = file.read().splitlines()
        seen = {t.data_ptr(): t for t in tree_leaves((results, arguments, written)) if isinstance(t, Tensor)}
        floor = sum(self._touched(tensor, write) for tensor in seen.values() for write in (False, True))
        self.counts.append({"operator": operator._schema.name.partition("::")[2], "floor": floor, "lines": lines})
        return results, written

    def _touched(self, tensor: Tensor, write: bool) -> int:
        touched = self.control.cuda_on_cpu_touched
        touched.restype = ctypes.c_size_t
        return int(touched(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), write))


def main() -> None:
    """Prints as JSON what a library's kernels do; ``only`` names cases, all of them if none."""
    library, *only = sys.argv[1:]
    torch.set_num_threads(1)
    operators = CountedOperators(library)
    done = []
    for case, kind, side in cases():
        if only and case.__name__ not in only:
            continue
        operators.counts.clear()
        case(kind, side)
        done += [{**count, "layout": kind.layout, "dtype": kind.dtype, "side": side} for count in operators.counts]
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
