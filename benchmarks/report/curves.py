"""Tables beside curves: scaling, agreement of fused and plain training, the weight of the auxiliary loss."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.case import EAGER, OURS
from benchmarks.report.markdown import (
    NOTHING,
    Results,
    Row,
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
        measured = row.get("miou", {})
        ends = [f"{100 * measured[name][-1]:.2f}" if measured else NOTHING for name in ("plain", "fused", "control")]
        lines.append([row["dtype"].removeprefix("torch."), str(row["steps"]), *gaps, *ends])
    row = results["rows"][0]
    images = next((row["val_images"] for row in results["rows"] if "miou" in row), None)
    miou = f" mIoU is in percent, of {images} validation images after the last step." if images else ""
    text = (
        f"{row['data']}: PSPNet{row['layers']} from scratch, {row['batch']} crops of {row['crop']}×{row['crop']}, SGD, "
        "the same weights, crops and dropout for all. Loss columns are the largest difference from the plain network's "
        f"in any step; the control is the plain network with its weights changed in the last digit.{miou}\n"
    )
    picture = f"![Loss and mIoU of plain, fused and control]({results['name']}.svg)"
    return region(picture, table(columns, lines), text + machine_line(results["machine"]))


def aux_weight(files: Sequence[Results]) -> str:
    """What the weight of the auxiliary loss does to mIoU and main loss, over seeds."""
    (results,) = files
    columns = {"λ": "r", "val mIoU, %": "r", "against λ = 0": "r", "main loss, mean over the run": "r",
               "against λ = 0 ": "r"}  # fmt: skip
    lines = []
    for row in results["summary"]["weights"]:
        cells = [_spread(row["final_miou"], 100, ".2f"), _spread(row["final_miou_difference"], 100, "+.2f")]
        cells += [_spread(row["mean_loss"], 1, ".3f"), _spread(row["mean_loss_difference"], 1, "+.3f")]
        lines.append([f"{row['weight']:g}", *cells])
    config, seeds = results["config"], len(results["summary"]["seeds"])
    crop = config["data"]["crop"]
    text = (
        f"{results['data']}: PSPNet{config['model']['layers']} from random weights, {config['run']['max_steps']} steps "
        f"of {config['optim']['batch_size']} crops of {crop}×{crop}; mean (least to most) of {seeds} "
        f"seed{'s' * (seeds > 1)}. The runs of a seed differ in λ alone: weights, crops and dropout are the same, and "
        "differences are taken seed by seed.\n"
    )
    picture = "![Loss and mIoU for each weight of the auxiliary loss](aux_weight.svg)"
    return region(picture, table(columns, lines), text + machine_line(results["machine"]))


def _spread(values: Row, scale: float, form: str) -> str:
    """ "22.31 (21.80 to 22.90)"."""
    mean, low, high = (format(scale * values[key], form) for key in ("mean", "min", "max"))
    return f"{mean} ({low} to {high})"
