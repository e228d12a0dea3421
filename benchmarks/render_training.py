"""Tables of networks and trainings: a step, end to end, curves over an axis, fused and plain, the auxiliary loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.cases import AXES
from benchmarks.markdown import (
    NOTHING,
    TITLES,
    Column,
    File,
    Row,
    failures,
    machine_line,
    machine_lines,
    median_of,
    medians,
    megabytes,
    milliseconds,
    peaks,
    region,
    rounds,
    seconds,
    shape,
    short,
    table,
    times,
)
from benchmarks.peers import EAGER, OURS
from benchmarks.render_operators import measured

SPREAD = "time, median (20th to 80th percentile)"
MEANING = {
    "classes": "classes of the two losses",
    "batch": "images",
    "size": "height and width of the crops, pixels",
    "threads": "threads",
}


# ---- the network -----------------------------------------------------------------------------------------------------


def by_peer(rows: Sequence[Row]) -> list[Row]:
    """A row for each peer that was timed."""
    return [{**row, "peer": peer, "time": time} for row in rows for peer, time in row["milliseconds"].items()]


def training_step(files: Sequence[File]) -> str:
    """A line for each number of classes and variant."""

    def time(row: Row) -> str:
        found = row["time"]
        return f"{seconds(found['median'])} s ({seconds(found['p20'])} to {seconds(found['p80'])})"

    file, rows = files[0], measured(files[0], "training_step")
    columns: tuple[Column, ...] = (
        ("", "l", lambda row: row["shape"].rsplit(", ", 1)[1]),
        ("one training step with", "l", lambda row: TITLES[row["peer"]]),
        (SPREAD, "r", time),
        ("time / ours", "r", lambda row: f"{row['ratio'][row['peer']]:.2f}"),
        ("peak memory", "r", lambda row: megabytes(row["peak_bytes"].get(row["peer"]))),
    )
    text = (
        f"{rows[0]['shape'].rsplit(', ', 1)[0]}, {rows[0]['layout']}, {rows[0]['dtype']}: forward, both losses, "
        f"backward; {rounds(rows)} rounds, the variants in turn. Peak memory is what a step takes on top of network, "
        "images and labels, in a process of its own.\n"
    )
    return region(table(columns, by_peer(rows)), *failures(rows), text + machine_lines(file, rows))


def end_to_end(files: Sequence[File]) -> str:
    """Of each file a row for each network, mode and variant."""
    return region(*(_end_to_end(file) for file in files))


def _end_to_end(file: File) -> str:
    def batch_cell(memory: str) -> Column:
        def cell(row: Row) -> str:
            batch = row["largest_batch"][memory].get(row["peer"])
            return NOTHING if batch is None else str(batch or "none")

        return f"largest batch in {memory} GB", "r", cell

    def time(row: Row) -> str:
        found = row["time"]
        return f"{milliseconds(found['median'])} ({short(found['p20'])} to {short(found['p80'])})"

    rows = file["rows"]
    columns: tuple[Column, ...] = (
        ("network", "l", lambda row: f"PSPNet{row['layers']}"),
        ("", "l", lambda row: row["mode"]),
        ("with", "l", lambda row: TITLES[row["peer"]]),
        ("images a second", "r", lambda row: short(row["images_per_second"][row["peer"]])),
        (SPREAD, "r", time),
        ("peak memory", "r", lambda row: megabytes(row["peak_bytes"].get(row["peer"]))),
        *map(batch_cell, dict.fromkeys(memory for row in rows for memory in row["largest_batch"])),
    )
    row = rows[0]
    batches = " or ".join(dict.fromkeys(" and ".join(map(str, row["memory_batches"])) for row in rows))
    precision = "bfloat16 autocast" if row["dtype"] == "bfloat16" else row["dtype"]
    text = (
        f"{row['batch']} crops of {row['size']}×{row['size']}, {row['classes']} classes, {row['layout']}, {precision}; "
        "training: forward, both losses, backward; inference: labels at full size. "
        f"{rounds(rows)} rounds, the variants in turn. Peak memory is what a call takes on top of network, images and "
        f"labels. The largest batch follows from a line through the peaks at {batches} images, "
        f"with weights, gradients, SGD's momentum, images and labels counted.\n"
    )
    return region(table(columns, by_peer(rows)), *failures(rows), text + machine_lines(file, rows))


# ---- curves ----------------------------------------------------------------------------------------------------------


def scaling(files: Sequence[File]) -> str:
    """A picture and a table for each axis."""
    return region(*(_axis(file, axis) for file in files for axis in AXES if rows_of_axis(file, axis)))


def rows_of_axis(file: File, axis: str) -> list[Row]:
    return [row for row in file["rows"] if row["axis"] == axis]


def _axis(file: File, axis: str) -> str:
    def ratio(row: Row) -> str:
        found = medians(row)
        return times(found[EAGER] / found[OURS] if {EAGER, OURS} <= set(found) else None)

    rows = rows_of_axis(file, axis)
    columns: tuple[Column, ...] = (
        ("operator", "l", lambda row: f"`{row['operator']}`"),
        (axis, "r", lambda row: str(row["value"])),
        ("shape", "l", shape),
        ("eager", "r", median_of(EAGER)),
        ("**ours**", "r", median_of(OURS)),
        ("eager / ours", "r", ratio),
        ("memory, eager", "r", lambda row: megabytes(peaks(row).get(EAGER))),
        ("memory, **ours**", "r", lambda row: megabytes(peaks(row).get(OURS))),
    )
    skipped = [
        f"Not run: `{row['operator']}` at {axis} {row['value']}, {peer}: {reason}."
        for row in rows
        for peer, reason in row.get("skipped", {}).items()
    ]
    text = (
        f"Along the axis: {MEANING[axis]}. Forward and backward, default allocator; medians of {rounds(rows)} rounds, "
        "eager and this package in turn; memory is what a call takes on top of its inputs and weights.\n"
    )
    picture = f"![Time and memory over {axis}]({file['name']}_{axis}.png)"
    return region(picture, table(columns, rows), *skipped, *failures(rows), text + machine_lines(file, rows))


# ---- training --------------------------------------------------------------------------------------------------------


def training(files: Sequence[File]) -> str:
    """A picture for each data set, and for each dtype how far fused and control end from plain."""
    return region(*(_training(file) for file in files))


def _training(file: File) -> str:
    def gap(name: str) -> Column:
        return f"loss: {name}", "r", lambda row: f"{row['largest_difference'][name]:.2g}"

    def miou(name: str) -> Column:
        return f"mIoU: {name}", "r", lambda row: f"{100 * row['miou'][name][-1]:.2f}" if "miou" in row else NOTHING

    columns: tuple[Column, ...] = (
        ("training in", "l", lambda row: row["dtype"]),
        ("steps", "r", lambda row: str(row["steps"])),
        *map(gap, ("fused", "control")),
        *map(miou, ("plain", "fused", "control")),
    )
    rows = file["rows"]
    row = rows[0]
    images = next((row["val_images"] for row in rows if "miou" in row), None)
    note = f" mIoU is in percent, of {images} validation images after the last step." if images else ""
    text = (
        f"{row['data']}: PSPNet{row['layers']} from scratch, {row['batch']} crops of {row['crop']}×{row['crop']}, SGD, "
        "the same weights, crops and dropout for all. Loss columns are the largest difference from the plain network's "
        f"in any step; the control is the plain network with its weights changed in the last digit.{note}\n"
    )
    picture = f"![Loss and mIoU of plain, fused and control]({file['name']}.png)"
    return region(picture, table(columns, rows), text + machine_lines(file, rows))


def aux_weight(files: Sequence[File]) -> str:
    """What the weight of the auxiliary loss does to mIoU and main loss, over seeds."""

    def spread(key: str, scale: float, form: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            mean, low, high = (format(scale * row[key][name], form) for name in ("mean", "min", "max"))
            return f"{mean} ({low} to {high})"

        return cell

    (results,) = files
    columns: tuple[Column, ...] = (
        ("λ", "r", lambda row: f"{row['weight']:g}"),
        ("val mIoU, %", "r", spread("final_miou", 100, ".2f")),
        ("against λ = 0", "r", spread("final_miou_difference", 100, "+.2f")),
        ("main loss, mean over the run", "r", spread("mean_loss", 1, ".3f")),
        ("against λ = 0 ", "r", spread("mean_loss_difference", 1, "+.3f")),
    )
    config, seeds = results["config"], len(results["summary"]["seeds"])
    crop = config["data"]["crop"]
    text = (
        f"{results['data']}: PSPNet{config['model']['layers']} from random weights, {config['run']['max_steps']} steps "
        f"of {config['optim']['batch_size']} crops of {crop}×{crop}; mean (least to most) of {seeds} "
        f"seed{'s' * (seeds > 1)}. The runs of a seed differ in λ alone: weights, crops and dropout are the same, and "
        "differences are taken seed by seed.\n"
    )
    picture = f"![Loss and mIoU for each weight of the auxiliary loss]({results['name']}.png)"
    return region(picture, table(columns, results["summary"]["weights"]), text + machine_line(results["machine"]))
