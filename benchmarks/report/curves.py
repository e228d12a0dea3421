"""Tables beside curves: scaling, agreement of fused and plain training, the weight of the auxiliary loss."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.case import EAGER, OURS
from benchmarks.report.markdown import (
    NOTHING,
    Results,
    failures,
    machine_line,
    medians,
    megabytes,
    milliseconds,
    peaks,
    region,
    rounds,
    shape,
    table,
    times,
)
from benchmarks.scaling import AXES

MEANING = {
    "classes": "classes of the two losses",
    "batch": "images",
    "size": "height and width of the crops, pixels",
    "threads": "threads",
}


def scaling(files: Sequence[Results]) -> str:
    """Of each axis a picture and a table."""
    in_order = sorted(files, key=lambda results: (results["name"].split("_")[1], AXES.index(axis_of(results))))
    return region(*(_axis(results) for results in in_order))


def axis_of(results: Results) -> str:
    return str(results["rows"][0]["axis"])


def _axis(results: Results) -> str:
    axis, rows = axis_of(results), results["rows"]
    columns = {"operator": "l", axis: "r", "shape": "l", "eager": "r", "**ours**": "r", "eager / ours": "r",
               "memory, eager": "r", "memory, **ours**": "r"}  # fmt: skip
    lines = []
    for row in rows:
        time, memory = medians(row), peaks(row)
        ratio = time[EAGER] / time[OURS] if {EAGER, OURS} <= set(time) else None
        cells = [*(milliseconds(time.get(peer)) for peer in (EAGER, OURS)), times(ratio)]
        sizes = [megabytes(memory.get(peer)) for peer in (EAGER, OURS)]
        lines.append([f"`{row['operator']}`", str(row["value"]), shape(row), *cells, *sizes])
    skipped = [
        f"Not run: `{row['operator']}` at {axis} {row['value']}, {peer}: {reason}."
        for row in rows
        for peer, reason in row.get("skipped", {}).items()
    ]
    text = (
        f"Along the axis: {MEANING[axis]}. Forward and backward, default allocator; medians of {rounds(rows)} rounds, "
        "eager and this package in turn; memory is what a call takes on top of its inputs and weights.\n"
    )
    picture = f"![Time and memory over {axis}]({results['name']}.svg)"
    return region(picture, table(columns, lines), *skipped, *failures(rows), text + machine_line(results["machine"]))


def agreement(files: Sequence[Results]) -> str:
    """Of each data set a picture, and for each dtype how far fused and control end from plain."""
    return region(*(_data_set(results) for results in files))


def _data_set(results: Results) -> str:
    columns = {"training in": "l", "steps": "r", "loss: fused": "r", "loss: control": "r", "mIoU: plain": "r",
               "mIoU: fused": "r", "mIoU: control": "r"}  # fmt: skip
    lines = []
    for row in results["rows"]:
        gaps = [f"{row['largest_difference'][name]:.2g}" for name in ("fused", "control")]
        miou = [
            f"{100 * row['miou'][name][-1]:.2f}" if "miou" in row else NOTHING for name in ("plain", "fused", "control")
        ]
        lines.append([row["dtype"].removeprefix("torch."), str(row["steps"]), *gaps, *miou])
    row = results["rows"][0]
    images = (
        f" mIoU is in percent, of {row['val_images']} validation images after the last step." if "miou" in row else ""
    )
    text = (
        f"{row['data']}: PSPNet{row['layers']} from scratch, {row['batch']} crops of {row['crop']}×{row['crop']}, SGD, "
        "the same weights, crops and dropout for all. Loss columns are the largest difference from the plain network's "
        f"in any step; the control is the plain network with its weights changed in the last digit.{images}\n"
    )
    picture = f"![Loss and mIoU of plain, fused and control]({results['name']}.svg)"
    return region(picture, table(columns, lines), text + machine_line(results["machine"]))
