"""The tables of the pages: operators alone."""

from __future__ import annotations

from benchmarks.markdown import (
    KEPT,
    MEMORY,
    TIMES,
    Row,
    extra_memory,
    median_of,
    medians,
    percent,
    shape,
)
from benchmarks.peers import OURS
from benchmarks.pyramid import PLAIN_READ, X_ALONE
from benchmarks.render import KEEPS, Render, timed


def alone(row: Row) -> str:
    """The share of the convolution of x alone in this package's time."""
    found = medians(row)
    return f"{percent(found[X_ALONE] / found[OURS] if {X_ALONE, OURS} <= set(found) else None)} of ours"


def upsampled(name: str, title: str) -> Render:
    columns = ((title, "l", shape), *TIMES, KEPT, ("extra memory, eager : ours", "r", extra_memory))
    return timed(
        [name],
        columns,
        "Batch×classes×height×width → height×width, float32; medians of {rounds} rounds, the variants in turn. Eager "
        f"spends much of its time on memory that the C library returns and maps again, page by page. {KEEPS}",
    )


cross_entropy = upsampled("dual_cross_entropy", "both losses, forward and backward")
upsample_argmax = upsampled("upsample_argmax", "labels from low-resolution logits")
pyramid_pool = timed(
    ["pyramid_pool"],
    (
        ("pooling of", "l", shape),
        ("direction", "l", lambda row: row["direction"]),
        *TIMES,
        KEPT,
        (f"`{PLAIN_READ}`", "r", median_of(PLAIN_READ)),
    ),
    "To 1×1, 2×2, 3×3 and 6×6 bins; medians of {rounds} rounds, the variants in turn. `x.sum()` is one read of the "
    f"same tensor with nothing else. {KEEPS}",
)
psp_head = timed(
    ["psp_head"],
    (("head over", "l", shape), *TIMES, KEPT, (X_ALONE, "r", alone), MEMORY),
    "Pyramid pooling, its levels, 3×3 convolution, batch normalisation and ReLU: results, gradients of the input "
    "and of every parameter; medians of {rounds} rounds, the variants in turn. `convolution of x alone` is the "
    f"same step without any pyramid. {KEEPS}",
)
upsample_add = timed(
    ["upsample_add"],
    (("levels → sum", "l", shape), *TIMES, MEMORY),
    "A map and its levels, upsampled by 2, 4 and 8 and added: results and all gradients, float32; medians of {rounds} "
    "rounds, the variants in turn.",
)
pyramid_conv = timed(
    ["pyramid_conv"],
    (("levels → result", "l", shape), ("direction", "l", lambda row: row["direction"]), *TIMES, MEMORY),
    "3×3 convolution of a map and of levels that are upsampled by 2, 4 and 8 beside it: results, and with backward the "
    "gradients of the weight and of all maps, float32; medians of {rounds} rounds of the processor time of one thread, "
    "the variants in turn.",
)
