"""The tables of what cases.py measures of operators, this package's network and other libraries' models."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import markdown as md
from benchmarks.cases import AXES
from benchmarks.markdown import Cell, Column, File, Row, Table, from_files, measured_by
from benchmarks.peers import COMPILE, EAGER, OURS, PACKAGES, PLAIN_READ
from benchmarks.pyramid import X_ALONE

OPERATORS, NETWORK = "operators_cpu", "network_cpu"
LOSSES = "dual_cross_entropy or upsample_argmax"
KEEPS = "Without page faults: the better / ours in a process that keeps its memory."
SPREAD = "time, median (20th to 80th percentile)"
DIRECTION: Column = ("direction", "l", lambda row: row["direction"])
MEANING = {
    "classes": "classes of the two losses",
    "batch": "images",
    "size": "height and width of the crops, pixels",
    "threads": "threads",
}


# ---- operators alone -------------------------------------------------------------------------------------------------


def of_operators(operators: Sequence[str], columns: Sequence[Column], text: str, command: str, files: str) -> Table:
    """The rows of some operators, in their order."""

    def render(file: File) -> str:
        rows = [row for operator in operators for row in file["rows"] if row["operator"] == operator]
        return md.section(file, rows, columns, text, lines=md.timed(rows))

    return from_files(files, command=command)(render)


def of_operator(operator: str, columns: Sequence[Column], text: str, selection: str = "") -> Table:
    command = measured_by("operators", selection or operator)
    return of_operators([operator], columns, text, command, OPERATORS)


def of_logits(operator: str, title: str) -> Table:
    columns = ((title, "l", md.shape), *md.TIMES, md.KEPT, ("extra memory, eager : ours", "r", md.extra_memory))
    text = (
        "Batch×classes×height×width → height×width, float32; medians of {rounds} rounds, the variants in turn. Eager "
        f"spends much of its time on memory that the C library returns and maps again, page by page. {KEEPS}"
    )
    return of_operator(operator, columns, text, LOSSES)


share = md.over_ours(md.medians, X_ALONE, md.percent)
cross_entropy = of_logits("dual_cross_entropy", "both losses, forward and backward")
upsample_argmax = of_logits("upsample_argmax", "labels from low-resolution logits")
pyramid_pool = of_operator(
    "pyramid_pool",
    (("pooling of", "l", md.shape), DIRECTION, *md.TIMES, md.KEPT, (f"`{PLAIN_READ}`", "r", md.median_of(PLAIN_READ))),
    "To 1×1, 2×2, 3×3 and 6×6 bins; medians of {rounds} rounds, the variants in turn. `x.sum()` is one read of the "
    f"same tensor with nothing else. {KEEPS}",
)
psp_head = of_operator(
    "psp_head",
    (
        ("head over", "l", md.shape),
        *md.TIMES,
        md.KEPT,
        (X_ALONE, "r", lambda row: f"{share(row)} of ours"),
        md.MEMORY,
    ),
    "Pyramid pooling, its levels, 3×3 convolution, batch normalisation and ReLU: results, gradients of the input "
    "and of every parameter; medians of {rounds} rounds, the variants in turn. `convolution of x alone` is the "
    f"same step without any pyramid. {KEEPS}",
)
upsample_add = of_operator(
    "upsample_add",
    (("levels → sum", "l", md.shape), *md.TIMES, md.MEMORY),
    "A map and its levels, upsampled by 2, 4 and 8 and added: results and all gradients, float32; medians of {rounds} "
    "rounds, the variants in turn.",
)
pyramid_conv = of_operator(
    "pyramid_conv",
    (("levels → result", "l", md.shape), DIRECTION, *md.TIMES, md.MEMORY),
    "3×3 convolution of a map and of levels that are upsampled by 2, 4 and 8 beside it: results, and with backward the "
    "gradients of the weight and of all maps, float32; medians of {rounds} rounds of the processor time of one thread, "
    "the variants in turn.",
)


def _floors(files: Sequence[File]) -> str:
    """Of every row the floor, what sets it, and what share of its speed is reached."""

    def kind(row: Row) -> str:
        floor = row["floor"]
        memory_bound = floor["memory_milliseconds"] > floor["arithmetic_milliseconds"]
        return f"{md.short(floor['bytes'] / 1e6)} MB" if memory_bound else f"{md.short(floor['flops'] / 1e9)} GFLOP"

    def longer(row: Row) -> str:
        return md.milliseconds(max(row["floor"]["memory_milliseconds"], row["floor"]["arithmetic_milliseconds"]))

    def share(peer: str) -> Cell:
        def cell(row: Row) -> str:
            value = row["floor_reached"].get(row["ours"] if peer == OURS else peer)
            return md.NOTHING if value is None else f"{100 * value:.{2 if value < 0.995 else 3}g} %"

        return cell

    columns = (
        md.OPERATOR_AND_DIRECTION,
        md.SHAPE,
        ("floor", "r", longer),
        ("set by", "l", kind),
        *((column[0], "r", share(peer)) for peer, column in zip((EAGER, COMPILE, OURS), md.TIMES, strict=False)),
    )
    rows, operators = [], {}
    for file in files:
        for row in (row for row in file["rows"] if "floor" in row):
            rows.append(row)
            where = f"{md.rates_text(row['rates'])}; {md.machine_line(file['machines'][row['machine']])}"
            operators.setdefault(where, {})[f"`{row['operator']}`"] = None
    machines = [f"- {' and '.join(names)}: {where}" for where, names in operators.items()]
    text = (
        "The floor is the longer of the bytes over the copy bandwidth and the FLOP over the rate of arithmetic, "
        "both measured in the same run:"
    )
    return md.region(md.table(columns, rows), text, "\n".join(machines))


floors = Table((OPERATORS, NETWORK), measured_by("operators or network"), _floors)


@from_files("projects_cpu", "projects_gpu", command=measured_by("projects"))
def projects(file: File) -> str:
    """Every operator in each project's arrangement."""

    def package(row: Row) -> str:
        found = next((name for name in PACKAGES if name in row["milliseconds"]), None)
        if found is None:
            return md.NOTHING
        return f"{md.milliseconds(row['milliseconds'][found]['median'])} ({md.times(row['ratio'].get(found))})"

    def arrangement(row: Row) -> str:
        return str(row["arrangement"]) + ("" if row.get("dtype", "float32") == "float32" else f", {row['dtype']}")

    columns = (
        md.OPERATOR,
        ("at", "l", lambda row: f"{row['configuration']}, {row['shape'].replace('->', '→')}"),
        ("as", "l", arrangement),
        *md.TIMES,
        md.KEPT,
        ("its package", "r", package),
        md.MEMORY,
        md.REACHED,
    )
    rows = file["rows"]
    versions = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    skipped = dict.fromkeys(name for row in rows for name in row.get("skipped", {}))
    text = (
        "Forward and backward, `upsample_argmax` forward alone; medians of {rounds} rounds, the variants in turn. "
        f"Eager is the project's arrangement in stock operators. {KEEPS} Its package: the time of the project's "
        "own code, and how many times ours it is."
    )
    text += f" Measured: {', '.join(f'{n} {version}' for n, version in versions.items())}." if versions else ""
    text += f" Not installed: {', '.join(skipped)}." if skipped else ""
    return md.section(file, rows, columns, text, lines=md.timed(rows))


@from_files("scaling_*", command=measured_by("scaling"))
def scaling(file: File) -> str:
    """A picture and a table for each axis."""
    return md.region(*(_axis(file, axis, rows) for axis in AXES if (rows := rows_of_axis(file, axis))))


def rows_of_axis(file: File, axis: str) -> list[Row]:
    return [row for row in file["rows"] if row["axis"] == axis]


def _axis(file: File, axis: str, rows: Sequence[Row]) -> str:
    columns = (
        md.OPERATOR,
        (axis, "r", lambda row: str(row["value"])),
        ("shape", "l", md.shape),
        md.TIMES[0],
        md.TIMES[2],
        ("eager / ours", "r", md.over_ours(md.medians, EAGER)),
        ("memory, eager", "r", lambda row: md.megabytes(md.peaks(row).get(EAGER))),
        ("memory, **ours**", "r", lambda row: md.megabytes(md.peaks(row).get(OURS))),
    )
    skipped = [
        f"Not run: `{row['operator']}` at {axis} {row['value']}, {peer}: {reason}."
        for row in rows
        for peer, reason in row.get("skipped", {}).items()
    ]
    text = (
        f"Along the axis: {MEANING[axis]}. Forward and backward, default allocator; medians of {{rounds}} rounds, "
        "eager and this package in turn; memory is what a call takes on top of its inputs and weights."
    )
    picture = f"![Time and memory over {axis}]({file['name']}_{axis}.png)"
    return md.region(picture, md.section(file, rows, columns, text, lines=rows, notes=skipped))


# ---- training steps and inference ------------------------------------------------------------------------------------

network = of_operators(
    ["training_step", "inference"],
    (
        ("", "l", lambda row: row["operator"].replace("_", " ")),
        ("network", "l", md.shape),
        *md.TIMES,
        md.OURS_COMPILED_TIME,
        md.REACHED,
        md.MEMORY,
    ),
    "Training: forward, both losses, backward. Inference: labels at full size. Medians of {rounds} rounds, the "
    "variants in turn. Compiled: `torch.compile` of this package's network. The floor is the arithmetic of the "
    "convolutions alone.",
    measured_by("network"),
    NETWORK,
)


@from_files(NETWORK, command=measured_by("network"))
def training_step(file: File) -> str:
    """A line for each number of classes and variant."""

    def time(row: Row) -> str:
        median, low, high = (
            f"{value / 1e3:.{2 if value < 1e4 else 1}f}" for value in (row["time"][n] for n in ("median", "p20", "p80"))
        )
        return f"{median} s ({low} to {high})"

    rows = [row for row in file["rows"] if row["operator"] == "training_step"]
    columns = (
        ("", "l", lambda row: row["shape"].rsplit(", ", 1)[1]),
        ("one training step with", "l", lambda row: md.TITLES[row["peer"]]),
        (SPREAD, "r", time),
        ("time / ours", "r", md.of_peer("{:.2f}".format, "ratio")),
        ("peak memory", "r", md.of_peer(md.megabytes, "peak_bytes")),
    )
    text = (
        f"{rows[0]['shape'].rsplit(', ', 1)[0]}, {rows[0]['layout']}, {rows[0]['dtype']}: forward, both losses, "
        "backward; {rounds} rounds, the variants in turn. Peak memory is what a step takes on top of network, "
        "images and labels, in a process of its own."
    )
    return md.section(file, rows, columns, text, lines=md.by_peer(rows))


@from_files("accelerate_cpu", "accelerate_gpu", command=measured_by("accelerate"))
def accelerate(file: File) -> str:
    """A training step of other libraries' models, as they are and accelerated; those of most classes first."""

    def classes(row: Row) -> int:
        return int(row["shape"].rsplit(", ", 1)[1].removesuffix(" classes"))

    def memory(row: Row) -> str:
        found = md.peaks(row)
        sizes = (md.short(found[peer] / 1e6) if peer in found else md.NOTHING for peer in (EAGER, COMPILE, OURS))
        return f"{' : '.join(sizes)} MB"

    columns = (
        ("model", "l", lambda row: row["model"]),
        ("classes", "r", lambda row: str(classes(row))),
        *md.TIMES[:3],
        md.OURS_COMPILED_TIME,
        ("eager / ours", "r", md.over_ours(md.medians, EAGER)),
        ("compile / ours", "r", md.over_ours(md.medians, COMPILE)),
        ("peak memory, eager : compile : ours", "r", memory),
        ("eager / ours ", "r", md.over_ours(md.peaks, EAGER)),
    )
    rows = sorted(file["rows"], key=classes, reverse=True)
    batch, _, *size = rows[0]["shape"].split(", ")[0].split("x")
    autocast = "" if rows[0]["dtype"] == "float32" else f" under autocast in {rows[0]['dtype']}"
    text = (
        f"Forward, loss at full resolution and backward of {batch} images of {'×'.join(size)}{autocast}, random "
        "weights; medians of {rounds} rounds, the variants in turn. Ours: the same model after "
        "`pspnet_fast.accelerate(model)`; compiled: `torch.compile` of the step inside `pspnet_fast.fuse()`. "
        "– : not measured."
    )
    return md.section(file, rows, columns, text, lines=md.timed(rows))
