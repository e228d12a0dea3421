"""What test_operators.py must know of each operator, in the manner of PyTorch's OpInfo: how to call it, and where it
differs from others. A new operator is one more :class:`Description`; its contract is then tested on every back end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import drawing
import hypothesis.strategies as st
import torch
from cross_entropy_cases import ANY_OPTIONS, OPTIONS, draw_dual, draw_loss
from drawing import DEFAULT, PSPNET, Description, Table
from running import DENSE, INTERPRETED, LABELS, LAYOUTS

from pspnet_fast.reference import Bin


def table(names: str, *rows: Sequence[Any], **common: Any) -> Table:
    return {str(row): {**dict(zip(names.split(), row, strict=True)), **common} for row in rows}


def crossed(some: Table, others: Table) -> Table:
    return {f"{a} {b}".strip(): some[a] | others[b] for a in some for b in others}


def sides(most: int, most_columns: int | None = None) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, most), st.integers(1, most_columns or most))


def lists(bins: st.SearchStrategy[Bin]) -> st.SearchStrategy[list[Bin]]:
    return st.lists(bins, min_size=1, max_size=4)


ALIGNED: Table = DEFAULT | {"centres": {"align_corners": False}}
SIZE_ALIGNED = DEFAULT if INTERPRETED else ALIGNED
PYRAMID = crossed(ALIGNED, DEFAULT | {"x_last": {"x_first": False}})
ANY_LAYOUT = st.sampled_from(list(LAYOUTS))
ANY_DENSE = st.sampled_from(DENSE)
ANY_PYRAMID = {"layout": ANY_LAYOUT, "align_corners": st.booleans(), "x_first": st.booleans()}
ANY_KERNEL = {"kernel": st.tuples(*[st.sampled_from([1, 3, 5])] * 2), "biased": st.booleans()}
ANY_LOGITS = {"low": sides(6), "size": sides(20), "align_corners": st.booleans()}
OF_ALL_WEIGHTS = {"weighted": True, "pixels_weighted": True, "label_smoothing": 0.1}

# More output channels than a block or a tile takes, columns likewise, and rows for several strips.
SIZES_OF_CONV = table(
    "size outputs level_channels",
    ((19, 72), 72, 8),
    ((9, 68), 44, 70),
    ((17, 67), 33, 3),
    **{"channels": 8, "biased": False, "batch": 1},
)
# Levels of more cells than the kernels for small ones take, in several panels and runs of outputs; one of one row, one
# as large as the map, one larger. In Triton's interpreter, where they take long, each with another kernel.
LARGE_LEVELS = crossed(
    table(
        "size bins level_channels outputs",
        ((24, 48), ((12, 24), (6, 12), (3, 6)), 12, 40),
        ((33, 20), ((1, 20), (33, 20), (40, 9)), 9, 5),
        ((16, 70), ((16, 67), 2), 2, 68),
        **{"channels": 3, "biased": False},
    ),
    table("kernel align_corners", ((3, 3), False), ((1, 1), True), ((1, 5), False)),
)
SIZES_OF_CONV |= dict(list(LARGE_LEVELS.items())[:: 4 if INTERPRETED else 1])
# Sizes behind what a tile of Triton's holds: columns and rows of the output, its channels, channels of a level, cells,
# taps, wide levels, high ones; and more levels than tables hold.
SIZES_OF_CONV |= table(
    "size bins level_channels outputs kernel",
    ((3, 70), (2, 1), 2, 3, (3, 3)),
    ((37, 2), (3, 1), 2, 3, (3, 1)),
    ((3, 4), (2,), 3, 67, (1, 3)),
    ((4, 3), (1, 2), 66, 2, (1, 1)),
    ((5, 6), (9, 23), 2, 3, (3, 1)),
    ((6, 5), (7, 1, 7), 2, 2, (5, 5)),
    ((3, 40), ((2, 23), (1, 9)), 2, 3, (3, 3)),
    ((24, 5), ((25, 2), (9, 4)), 2, 3, (3, 3)),
    ((4, 5), (1, 2) * 5, 3, 4, (3, 3)),
    **{"channels": 2, "biased": False, "align_corners": False, "x_first": False, "batch": 1},
)

LONG_LINES = [((9, 700), ((5, 300), (3, 20)), 40), ((1 << 18, 1), ((4096, 1),), 1)]

DESCRIPTIONS = [
    Description(
        "pyramid_pool",
        drawing.draw_pool,
        {"size": sides(19), "bins": lists(st.integers(1, 9)), "channels": st.integers(1, 5), "layout": ANY_LAYOUT},
        # Sides that the bins divide and sides they do not, fewer cells than bins, a single cell, bins without order.
        sizes=table(
            "size bins channels batch",
            ((12, 12), PSPNET, 3, 2),
            ((13, 9), PSPNET, 3, 2),
            ((7, 20), PSPNET, 5, 1),
            ((2, 3), PSPNET, 3, 2),
            ((1, 1), PSPNET, 4, 1),
            ((11, 10), (1, 2, 4, 8), 3, 1),
            ((9, 11), (5,), 2, 2),
            ((6, 5), (3, 1, 3), 37, 1),
            ((21, 35), (1,), 2, 1),
            ((17, 1), (9, 9), 1, 1),
        ),
        variants=DEFAULT | table("size", ((1, 1),), ((12, 12),)),
        small={"size": (5, 4), "bins": (1, 3), "channels": 2},
        large={"size": (13, 11), "channels": 40},
    ),
    Description(
        "pyramid_pool_through",
        drawing.draw_through,
        {"size": sides(19), "bins": lists(st.integers(1, 9)), "channels": st.integers(1, 5), "layout": ANY_LAYOUT},
        small={"size": (5, 4), "bins": (1, 3), "channels": 2},
        large={"size": (13, 11), "channels": 40},
        run_by="pyramid_pool",
    ),
    Description(
        "pyramid_levels",
        drawing.draw_levels,
        {"size": sides(10), "bins": lists(st.integers(1, 7)), "channels": st.integers(1, 16), "layout": ANY_LAYOUT},
        gradient="steps",
        # Sides that the bins divide and sides they do not, fewer cells than bins, more channels, cells and levels than
        # a tile holds.
        sizes=table(
            "size bins channels width batch",
            ((12, 12), PSPNET, 5, 4, 2),
            ((13, 9), PSPNET, 8, 3, 1),
            ((2, 3), PSPNET, 3, 4, 1),
            ((7, 8), PSPNET, 70, 67, 1),
            ((11, 10), (5, 1), 40, 9, 3),
            ((4, 6), (1, 2) * 5, 5, 4, 2),
        ),
        small={"bins": (1, 2)},
        lowered=True,
        meta_strides=("nchw",),
    ),
    Description(
        "pyramid_concat",
        drawing.draw_concat,
        {"size": sides(12), "bins": lists(st.integers(1, 8)), **ANY_PYRAMID},
        options=PYRAMID,
        # What kernels treat apart: packs of channels and planes that do or do not divide by them, more channels than a
        # thread goes through, cells of many pixels, rows that do not fit at once, many bins, fewer pixels than bins, a
        # single one; several blocks of channels, of columns and of lines; more cells than a matrix tile has.
        sizes=crossed(
            table(
                "size bins channels level_channels batch x_first",
                ((6, 8), PSPNET, 16, 8, 2, True),
                ((18, 35), PSPNET, 24, 16, 1, True),
                ((5, 5), (1, 3), 1, 41, 1, True),
                ((9, 4), (2,), 0, 3, 1, False),
                ((2, 1100), (1, 4), 5, 1, 1, True),
                ((40, 3), (33, 1), 2, 2, 1, True),
                ((2, 3), (9, 1, 9), 8, 8, 1, True),
                ((1, 1), (1, 6), 3, 5, 2, True),
                ((3, 141), (2, 1), 1, 2, 1, False),
                ((2, 5), (1,), 131, 129, 1, False),
                ((18, 5), (17, 3), 1, 17, 1, False),
            ),
            SIZE_ALIGNED,
        ),
        size_dtypes=(torch.float64, torch.bfloat16),
        variants=ALIGNED,
        small={"size": (5, 4), "bins": (1, 3), "channels": 2},
        large={"size": (9, 11), "channels": 8, "level_channels": 4},
        inductor=False,
    ),
    Description(
        "pyramid_conv",
        drawing.draw_conv,
        {"size": sides(10), "bins": lists(st.one_of(st.integers(1, 7), sides(9))), **ANY_PYRAMID, **ANY_KERNEL},
        options=PYRAMID,
        sizes=SIZES_OF_CONV,
        size_dtypes=(torch.float32,) if INTERPRETED else (torch.float32, torch.float64, torch.bfloat16),
        variants=DEFAULT | table("align_corners biased", (False, False)),
        small={"size": (4, 3), "bins": (1, 2)},
        large={"size": (9, 11)},
        threads=(1, 1),  # those of oneDNN's convolution over x may share a sum
        lowered=True,
        # Of a convolution in channels_last, stock too, a meta tensor does not know the layout (a fake tensor does).
        meta_strides=("nchw",),
    ),
    Description(
        "pyramid_conv_norm_relu",
        drawing.draw_norm_relu,
        {"size": sides(10), "bins": lists(st.integers(1, 7)), **ANY_PYRAMID, **ANY_KERNEL},
        gradient="steps",
        options=PYRAMID,
        # More channels than a block takes, and more columns; vectors of 16 and 8 bytes, and single elements; and more
        # levels than tables hold.
        sizes=table(
            "size outputs bins",
            ((11, 72), 40, PSPNET),
            ((11, 68), 44, PSPNET),
            ((11, 67), 33, PSPNET),
            ((4, 5), 4, (1, 2) * 5),
        ),
        size_dtypes=(torch.float32, torch.bfloat16),
        small={"bins": (1, 2)},
        threads=(1, 1),
        lowered=True,
        meta_strides=("nchw",),
    ),
    Description(
        "upsample_add",
        drawing.draw_add,
        {
            "size": sides(20, 40),
            "bins": lists(st.one_of(st.integers(1, 7), sides(24, 9))),
            "layout": ANY_DENSE,
            "channels": st.sampled_from([1, 5, 70]),
            "align_corners": st.booleans(),
        },
        options=crossed(ALIGNED, DEFAULT | {"alone": {"based": False}}),
        layouts=tuple(LAYOUTS),
        # More levels than a kernel's tables hold, lines longer than a task holds, and a level beyond the tables.
        sizes=table(
            "size bins channels",
            ((5, 4), ((2, 3),) * 33, 1),
            *([((2, 130), ((2, 70), (1, 3)), 4)] if INTERPRETED else LONG_LINES),
            batch=1,
        ),
        size_dtypes=(torch.float32,),
        variants=ALIGNED,
        small={"size": (4, 3), "bins": ((2, 3), 1)},
    ),
    Description(
        "upsample_argmax",
        drawing.draw_argmax,
        {**ANY_LOGITS, "classes": st.integers(1, 6)},
        gradient="none",
        options=ALIGNED,
        layouts=tuple(LAYOUTS),
        large={"low": (9, 9), "size": (65, 65)},
        other={"low": (5, 2), "batch": 1},
        inductor=False,
        compared=drawing.chosen_logits,
    ),
    Description(
        "upsample_softmax_add",
        drawing.draw_softmax_add,
        {
            **ANY_LOGITS,
            "classes": st.integers(1, 6),
            "flip": st.booleans(),
            "scale": st.sampled_from([1.0, 200.0]),
            "reads": st.tuples(*[st.none() | st.integers(1, 20)] * 2),
            "dtype": st.just(torch.float64),
        },
        gradient="none",
        options=crossed(ALIGNED, DEFAULT | {"flip": {"flip": True, "weight": 0.25}})
        | table("reads flip", ((9, None), False), ((None, 40), False), ((9, 40), False), ((9, 40), True)),
        layouts=tuple(LAYOUTS),
        large={"size": (33, 33), "reads": (20, None)},
        other={"low": (5, 2), "batch": 1},
        inductor=False,
    ),
    Description(
        "upsample_cross_entropy",
        draw_loss,
        {
            **ANY_LOGITS,
            **ANY_OPTIONS,
            "layout": ANY_DENSE,
            "labels": st.sampled_from(LABELS),
            # Where a divisor may be zero, PyTorch's gradient is NaN and ours is zero: that has tests of its own.
            "denominator": st.sampled_from(["all", 7.0]),
        },
        options=OPTIONS,
        sizes=crossed(
            table(
                "low size",
                ((1, 1), (1, 1)),
                ((1, 1), (7, 40)),
                ((4, 5), (4, 5)),
                ((9, 7), (4, 3)),
                ((1, 6), (8, 1)),
                ((3, 3), (17, 17)),
                reduction="none",
            ),
            SIZE_ALIGNED,
        ),
        size_dtypes=(torch.float32,),
        variants=DEFAULT | table("reduction align_corners", ("sum", True), ("none", True), ("none", False)),
        small={"low": (2, 3), "size": (5, 7), "classes": 3, **OF_ALL_WEIGHTS},
        large={"low": (33, 5), "size": (257, 33)},
        other={"low": (5, 2), "batch": 1},
    ),
    Description(
        "dual_cross_entropy",
        draw_dual,
        {**ANY_OPTIONS, "aux_weight": st.sampled_from([0.0, 0.4, 1.0]), "aux_low": sides(6)},
        options=OPTIONS,
        variants=DEFAULT | table("reduction", ("none",)),
        small={"low": (2, 3), "aux_low": (3, 2), "size": (5, 7), "classes": 3, **OF_ALL_WEIGHTS},
        large={"low": (33, 5), "size": (257, 33)},
        other={"low": (4, 4), "aux_low": (3, 4), "batch": 1},
        inductor=False,
    ),
]
