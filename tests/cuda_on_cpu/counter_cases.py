"""What is counted: every operator that has kernels, in both layouts and in two dtypes, at two shapes of PSPNet's.

Rows are as long as in training and inference (60 or 90 columns for crops of 473 or 713 pixels, 256 for Cityscapes), and
channels as many as a block takes. There are fewer images, rows of logits and NCHW channels: each is more blocks of the
same case. float16 is as wide as bfloat16 and runs the same kernels; float64 is for tests of gradients.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from cuda_operators import Operators
from torch import Tensor
from torch.utils._pytree import tree_leaves

BINS = (1, 2, 3, 6)
PACKED = sum(k * k for k in BINS)
SIZES = [k for k in BINS for _ in "hw"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
ops: Any = torch.ops.pspnet_fast


class Case(NamedTuple):
    layout: str
    dtype: str
    side: int  # of the map; of logits, the columns

    @property
    def channels_last(self) -> bool:
        return self.layout == "channels_last"

    def values(self, *shape: int) -> Tensor:
        """Numbers between -2 and 2 that look random; a map in the layout."""
        numbers = torch.arange(torch.Size(shape).numel()) * 40503 % 65521
        values = (numbers.to(torch.float32) / 16384 - 2).to(DTYPES[self.dtype]).view(shape)
        return values.contiguous(memory_format=LAYOUTS[self.layout]) if len(shape) == 4 else values


def pool(case: Case) -> None:
    side, channels = case.side, 256 if case.channels_last else 8
    x = case.values(1, channels, side, side)
    pooled = ops.pyramid_pool(x, BINS)
    ops.pyramid_pool_backward(pooled, side, side, BINS, case.channels_last)
    ops.pyramid_pool_backward_add(x, pooled, BINS)


def levels(case: Case) -> None:
    x, weight, mean = case.values(1, 64, case.side // 5, case.side), case.values(64, 64, 1, 1), case.values(64)
    every = [[part] * len(BINS) for part in (weight, mean, mean.abs() + 1, mean, mean)]
    ops.pyramid_levels(x, BINS, *every, [1e-5] * len(BINS))


def concat(case: Case) -> None:
    channels = 256 if case.channels_last else 8
    x, packed = case.values(1, channels, case.side // 5, case.side), case.values(1, channels, PACKED)
    whole = ops.pyramid_concat(x, packed, BINS, True, True)
    ops.pyramid_concat_backward(whole, channels, BINS, True, True)


def conv(case: Case) -> None:
    x, packed = case.values(1, 4, case.side // 5, case.side), case.values(1, 16, PACKED)
    weight = case.values(32, 4 + 16 * len(BINS), 3, 3)
    y = ops.pyramid_conv(x, packed, weight, None, SIZES, True, True)
    ops.pyramid_conv_backward(y, x, packed, weight, SIZES, True, True, [False, True, True])


def add_levels(case: Case) -> None:
    height, width, channels = case.side // 5, case.side, 32 if case.channels_last else 4
    base, packed = case.values(1, channels, height, width), case.values(1, channels, PACKED)
    y = ops.upsample_add(packed, base, height, width, SIZES, True, case.channels_last)
    ops.upsample_add_backward(y, SIZES, True)


def losses(case: Case) -> None:
    """19 classes of Cityscapes, or 150 of ADE20K."""
    columns, rows, classes = case.side, 2, 19 if case.side == 256 else 150
    logits, labels = case.values(1, classes, rows, columns), labels_of(rows, columns, classes)
    options = (None, None, 255, 0.0, True)
    size = labels.shape[1:]
    ops.upsample_cross_entropy(logits, labels, False, False, *options)
    ops.dual_cross_entropy(logits, logits.clone(), labels, False, True, False, False, *options)
    ops.upsample_argmax(logits, *size, True, torch.int64)
    total = torch.zeros(1, classes, *size)
    ops.upsample_softmax_add(total, logits, *size, True, False, 1.0, None, None, None, None)


def labels_of(rows: int, columns: int, classes: int) -> Tensor:
    """8 pixels a cell, in pieces of 40 x 40 pixels with slanted borders; some of them are left out."""
    height, width = 8 * rows - 7, 2048 if columns == 256 else 8 * columns - 7
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    piece = (x + y // 2) // 40 * 7 + y // 40 * 3
    return torch.where(piece % 9 == 0, 255, piece % classes)[None]


# By side.
CASES: dict[Callable[[Case], None], tuple[int, int]] = {
    **dict.fromkeys((pool, levels, concat, conv, add_levels), (60, 90)),
    losses: (60, 256),
}


class CountedOperators(Operators):
    """Runs each call once, and counts it."""

    def __init__(self, library: str) -> None:
        import pspnet_fast  # noqa: F401  first, as what is loaded last is called: a build for GPUs has kernels too

        ctypes.CDLL(library).cuda_on_cpu_place_tensors()
        super().__init__(library, orders=(0,))
        self.control.cuda_on_cpu_stop_counting.restype = ctypes.c_char_p
        self.control.cuda_on_cpu_touched.restype = ctypes.c_size_t
        self.counts: list[dict[str, object]] = []

    def _run(self, operator: Any, order: int, arguments: Sequence[Any]) -> tuple[Any, dict[int, Tensor]]:
        self.control.cuda_on_cpu_start_counting()
        results, written = super()._run(operator, order, arguments)
        lines = self.control.cuda_on_cpu_stop_counting().decode().splitlines()
        seen = {t.data_ptr(): t for t in tree_leaves((results, arguments, written)) if isinstance(t, Tensor)}
        floor = sum(
            self.control.cuda_on_cpu_touched(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), write)
            for tensor, write in itertools.product(seen.values(), (False, True))
        )
        self.counts.append({"operator": operator._schema.name.partition("::")[2], "floor": floor, "lines": lines})
        return results, written


def main() -> None:
    """Prints as JSON what a library's kernels do; ``only`` names cases, all of them if none."""
    library, *only = sys.argv[1:]
    torch.set_num_threads(1)
    operators = CountedOperators(library)
    done = []
    for call, sides in CASES.items():
        for case in itertools.starmap(Case, itertools.product(LAYOUTS, DTYPES, sides)):
            if only and call.__name__ not in only:
                continue
            operators.counts.clear()
            call(case)
            done += [{**count, "case": case} for count in operators.counts]
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
