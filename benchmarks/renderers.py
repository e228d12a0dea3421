"""Every table of the pages: Markdown from result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import AXES
from benchmarks.markdown import (
    KEPT,
    MEMORY,
    NOTHING,
    REACHED,
    SHAPE,
    TIMES,
    TITLES,
    Column,
    File,
    Row,
    extra_memory,
    failures,
    machine_line,
    machine_lines,
    median_of,
    medians,
    megabytes,
    milliseconds,
    peaks,
    percent,
    region,
    rounds,
    seconds,
    shape,
    short,
    table,
    times,
)
from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED, PACKAGES
from benchmarks.pyramid import PLAIN_READ, X_ALONE

SPREAD = "time, median (20th to 80th percentile)"
MEANING = {
    "classes": "classes of the two losses",
    "batch": "images",
    "size": "height and width of the crops, pixels",
    "threads": "threads",
}
KEEPS = "Without page faults: the better / ours in a process that keeps its memory."


def measured(file: File, *operators: str) -> list[Row]:
    """The rows of these operators, in their order."""
    return [row for operator in operators for row in file["rows"] if row["operator"] == operator]


def timed_table(file: File, rows: Sequence[Row], columns: Sequence[Column], text: str) -> str:
    """A table of timed rows, what failed, and what was measured where."""
    note = f"{text.format(rounds=rounds(rows))}\n{machine_lines(file, rows)}"
    return region(table(columns, [row for row in rows if row.get("milliseconds")]), *failures(rows), note)


# ---- operators -------------------------------------------------------------------------------------------------------


def cross_entropy(files: Sequence[File]) -> str:
    return _upsampled(files[0], "dual_cross_entropy", "both losses, forward and backward")


def upsample_argmax(files: Sequence[File]) -> str:
    return _upsampled(files[0], "upsample_argmax", "labels from low-resolution logits")


def _upsampled(file: File, operator: str, title: str) -> str:
    columns = ((title, "l", shape), *TIMES, KEPT, ("extra memory, eager : ours", "r", extra_memory))
    text = (
        "Batch×classes×height×width → height×width, float32; medians of {rounds} rounds, the variants in turn. Eager "
        f"spends much of its time on memory that the C library returns and maps again, page by page. {KEEPS}"
    )
    return timed_table(file, measured(file, operator), columns, text)


def pyramid_pool(files: Sequence[File]) -> str:
    columns = (("pooling of", "l", shape), ("direction", "l", lambda row: row["direction"]), *TIMES, KEPT)
    text = (
        "To 1×1, 2×2, 3×3 and 6×6 bins; medians of {rounds} rounds, the variants in turn. `x.sum()` is one read of the "
        f"same tensor with nothing else. {KEEPS}"
    )
    read: Column = (f"`{PLAIN_READ}`", "r", median_of(PLAIN_READ))
    return timed_table(files[0], measured(files[0], "pyramid_pool"), (*columns, read), text)


def psp_head(files: Sequence[File]) -> str:
    def alone(row: Row) -> str:
        found = medians(row)
        return f"{percent(found[X_ALONE] / found[OURS] if {X_ALONE, OURS} <= set(found) else None)} of ours"

    columns = (("head over", "l", shape), *TIMES, KEPT, (X_ALONE, "r", alone), MEMORY)
    text = (
        "Pyramid pooling, its levels, 3×3 convolution, batch normalisation and ReLU: results, gradients of the input "
        "and of every parameter; medians of {rounds} rounds, the variants in turn. `convolution of x alone` is the "
        f"same step without any pyramid. {KEEPS}"
    )
    return timed_table(files[0], measured(files[0], "psp_head"), columns, text)


def floors(files: Sequence[File]) -> str:
    """Of every row the floor, what sets it, and what share of its speed is reached."""

    def kind(row: Row) -> str:
        floor = row["floor"]
        memory_bound = floor["memory_milliseconds"] > floor["arithmetic_milliseconds"]
        return f"{short(floor['bytes'] / 1e6)} MB" if memory_bound else f"{short(floor['flops'] / 1e9)} GFLOP"

    def share(peer: str) -> Column:
        def cell(row: Row) -> str:
            value = row["floor_reached"].get(row["ours"] if peer == OURS else peer)
            return NOTHING if value is None else f"{100 * value:.{2 if value < 0.995 else 3}g} %"

        return {EAGER: "eager", COMPILE: "`torch.compile`", OURS: "**ours**"}[peer], "r", cell

    columns: tuple[Column, ...] = (
        ("operator", "l", lambda row: f"`{row['operator']}`, {row['direction']}"),
        SHAPE,
        ("floor", "r", lambda row: milliseconds(max(v for k, v in row["floor"].items() if k.endswith("milliseconds")))),
        ("set by", "l", kind),
        *map(share, (EAGER, COMPILE, OURS)),
    )
    rows, operators = [], {}
    for file in files:
        for row in (row for row in file["rows"] if "floor" in row):
            rows.append(row)
            where = f"{_rates(row['rates'])}; {machine_line(file['machines'][row['machine']])}"
            operators.setdefault(where, {})[f"`{row['operator']}`"] = None
    machines = [f"- {' and '.join(names)}: {where}" for where, names in operators.items()]
    text = (
        "The floor is the longer of the bytes over the copy bandwidth and the FLOP over the rate of arithmetic, "
        "both measured in the same run:"
    )
    return region(table(columns, rows), text, "\n".join(machines))


def _rates(rates: Mapping[str, float]) -> str:
    return (
        f"copy {short(rates['copy'])} GB/s, arithmetic {short(rates['float32'])} GFLOP/s in float32 and "
        f"{short(rates['bfloat16'])} in bfloat16"
    )


# ---- other projects --------------------------------------------------------------------------------------------------


def projects(files: Sequence[File]) -> str:
    """Every operator in each project's arrangement."""
    return region(*(_projects(file) for file in files))


def _projects(file: File) -> str:
    def package(row: Row) -> str:
        found = next((name for name in PACKAGES if name in row["milliseconds"]), None)
        if found is None:
            return NOTHING
        return f"{milliseconds(row['milliseconds'][found]['median'])} ({times(row['ratio'].get(found))})"

    def arrangement(row: Row) -> str:
        return str(row["arrangement"]) + ("" if row.get("dtype", "float32") == "float32" else f", {row['dtype']}")

    columns: tuple[Column, ...] = (
        ("operator", "l", lambda row: f"`{row['operator']}`"),
        ("at", "l", lambda row: f"{row['configuration']}, {row['shape'].replace('->', '→')}"),
        ("as", "l", arrangement),
        *TIMES,
        KEPT,
        ("its package", "r", package),
        MEMORY,
        REACHED,
    )
    versions = {name: version for row in file["rows"] for name, version in row.get("versions", {}).items()}
    skipped = dict.fromkeys(name for row in file["rows"] for name in row.get("skipped", {}))
    text = (
        "Forward and backward, `upsample_argmax` forward alone; medians of {rounds} rounds, the variants in turn. "
        f"Eager is the project's arrangement in stock operators. {KEEPS} Its package: the time of the project's own "
        "code, and how many times ours it is."
    )
    text += f" Measured: {', '.join(f'{name} {version}' for name, version in versions.items())}." if versions else ""
    text += f" Not installed: {', '.join(skipped)}." if skipped else ""
    return timed_table(file, file["rows"], columns, text)


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


def network(files: Sequence[File]) -> str:
    """A training step, and inference to labels, with the floor."""
    columns: tuple[Column, ...] = (
        ("", "l", lambda row: row["operator"].replace("_", " ")),
        ("network", "l", shape),
        *TIMES,
        ("**ours**, compiled", "r", median_of(OURS_COMPILED)),
        REACHED,
        MEMORY,
    )
    text = (
        "Training: forward, both losses, backward. Inference: labels at full size. Medians of {rounds} rounds, the "
        "variants in turn. Compiled: `torch.compile` of this package's network. The floor is the arithmetic of the "
        "convolutions alone."
    )
    return timed_table(files[0], measured(files[0], "training_step", "inference"), columns, text)


def end_to_end(files: Sequence[File]) -> str:
    """Of each file a row for each network, mode and variant."""
    return region(*(_end_to_end(file) for file in files))


def _end_to_end(file: File) -> str:
    def batch_cell(memory: str) -> Column:
        def cell(row: Row) -> str:
            batch = row["largest_batch"][memory].get(row["peer"])
            tried = row.get("largest_tried", {}).get(memory, {}).get(row["peer"])
            if batch is None or not tried:
                return NOTHING if batch is None else str(batch or "none")
            words = [f"{tried[word]} {word}" for word in ("fits", "fails") if tried[word]]
            return f"{batch} ({', '.join(words)})"

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
    tried = "; in brackets what was tried" if any(row.get("largest_tried") for row in rows) else ""
    text = (
        f"{row['batch']} crops of {row['size']}×{row['size']}, {row['classes']} classes, {row['layout']}, {precision}; "
        "training: forward, both losses, backward; inference: labels at full size. "
        f"{rounds(rows)} rounds, the variants in turn. Peak memory is what a call takes on top of network, images and "
        f"labels. The largest batch follows from a line through the peaks at {batches} images, "
        f"with weights, gradients, SGD's momentum, images and labels counted{tried}.\n"
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

    def spread(key: str, scale: float, form: str) -> Any:
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


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def gpu(files: Sequence[File]) -> str:
    """Of every GPU: what was tested, the operators' rows, and the training of fused and plain operators."""
    return region(*(part for file in files for part in _gpu_parts(file)))


def _gpu_parts(file: File) -> list[str]:
    def graph(row: Row) -> str:
        return milliseconds(row.get("graph_milliseconds", {}).get(row.get("ours"), {}).get("median"))

    columns: tuple[Column, ...] = (
        ("operator", "l", lambda row: f"`{row['operator']}`, {row['direction']}"),
        SHAPE,
        *TIMES,
        ("as a CUDA graph, ours", "r", graph),
        REACHED,
        MEMORY,
    )
    rows, machine = file["rows"], file["machine"]
    tests = "; ".join(
        f"{name} {counts['passed']} passed, {counts['failed']} failed" for name, counts in file["tests"].items()
    )
    where = (
        f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, "
        f"triton {machine['triton']}, commit {machine['commit']}, {machine['date']}."
    )
    trained = "; ".join(_gpu_training(row) for row in file.get("training", []))
    return [
        f"### {machine['device']}",
        table(columns, rows) if rows else "",
        *failures(rows),
        f"Tests by back end: {tests}." if tests else "",
        f"Training: {trained}." if trained else "",
        where,
    ]


def _gpu_training(row: Row) -> str:
    """The largest difference of the losses, mIoU and speed."""
    text = f"losses in {row['dtype']} differ by {row['largest_difference']['fused']:.1e} at most"
    speed = row.get("images_per_second", {})
    for name, values in row.get("miou", {}).items():
        if name != "steps":
            text += f", {name} {values[-1]:.3f} mIoU" + (f" at {speed[name]:.0f} images a second" if speed else "")
    return text
