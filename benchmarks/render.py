"""The tables of operators and of this package's network: times, floors, other projects' arrangements, curves.

A renderer makes Markdown of the result files that a table of report.py is filled from.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cases import AXES
from benchmarks.markdown import (
    KEPT,
    MEMORY,
    NOTHING,
    OPERATOR,
    OPERATOR_AND_DIRECTION,
    REACHED,
    SHAPE,
    TIMES,
    TITLES,
    Column,
    File,
    Render,
    Row,
    by_peer,
    each_file,
    extra_memory,
    machine_line,
    median_of,
    medians,
    megabytes,
    milliseconds,
    of_peer,
    peaks,
    percent,
    rates_text,
    region,
    section,
    shape,
    short,
    table,
    timed,
    times,
)
from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED, PACKAGES
from benchmarks.pyramid import PLAIN_READ, X_ALONE

KEEPS = "Without page faults: the better / ours in a process that keeps its memory."
SPREAD = "time, median (20th to 80th percentile)"
DIRECTION: Column = ("direction", "l", lambda row: row["direction"])
MEANING = {
    "classes": "classes of the two losses",
    "batch": "images",
    "size": "height and width of the crops, pixels",
    "threads": "threads",
}


def of_operators(operators: Sequence[str], columns: Sequence[Column], text: str) -> Render:
    """Renders the rows of some operators, in their order."""

    def render(file: File) -> str:
        rows = [row for operator in operators for row in file["rows"] if row["operator"] == operator]
        return section(file, rows, columns, text, lines=timed(rows))

    return each_file(render)


# ---- operators alone -------------------------------------------------------------------------------------------------


def upsampled(name: str, title: str) -> Render:
    columns = ((title, "l", shape), *TIMES, KEPT, ("extra memory, eager : ours", "r", extra_memory))
    return of_operators(
        [name],
        columns,
        "Batch×classes×height×width → height×width, float32; medians of {rounds} rounds, the variants in turn. Eager "
        f"spends much of its time on memory that the C library returns and maps again, page by page. {KEEPS}",
    )


def alone(row: Row) -> str:
    """The share of the convolution of x alone in this package's time."""
    found = medians(row)
    return f"{percent(found[X_ALONE] / found[OURS] if {X_ALONE, OURS} <= set(found) else None)} of ours"


cross_entropy = upsampled("dual_cross_entropy", "both losses, forward and backward")
upsample_argmax = upsampled("upsample_argmax", "labels from low-resolution logits")
pyramid_pool = of_operators(
    ["pyramid_pool"],
    (("pooling of", "l", shape), DIRECTION, *TIMES, KEPT, (f"`{PLAIN_READ}`", "r", median_of(PLAIN_READ))),
    "To 1×1, 2×2, 3×3 and 6×6 bins; medians of {rounds} rounds, the variants in turn. `x.sum()` is one read of the "
    f"same tensor with nothing else. {KEEPS}",
)
psp_head = of_operators(
    ["psp_head"],
    (("head over", "l", shape), *TIMES, KEPT, (X_ALONE, "r", alone), MEMORY),
    "Pyramid pooling, its levels, 3×3 convolution, batch normalisation and ReLU: results, gradients of the input "
    "and of every parameter; medians of {rounds} rounds, the variants in turn. `convolution of x alone` is the "
    f"same step without any pyramid. {KEEPS}",
)
upsample_add = of_operators(
    ["upsample_add"],
    (("levels → sum", "l", shape), *TIMES, MEMORY),
    "A map and its levels, upsampled by 2, 4 and 8 and added: results and all gradients, float32; medians of {rounds} "
    "rounds, the variants in turn.",
)
pyramid_conv = of_operators(
    ["pyramid_conv"],
    (("levels → result", "l", shape), DIRECTION, *TIMES, MEMORY),
    "3×3 convolution of a map and of levels that are upsampled by 2, 4 and 8 beside it: results, and with backward the "
    "gradients of the weight and of all maps, float32; medians of {rounds} rounds of the processor time of one thread, "
    "the variants in turn.",
)


def floors(files: Sequence[File]) -> str:
    """Of every row the floor, what sets it, and what share of its speed is reached."""

    def kind(row: Row) -> str:
        floor = row["floor"]
        memory_bound = floor["memory_milliseconds"] > floor["arithmetic_milliseconds"]
        return f"{short(floor['bytes'] / 1e6)} MB" if memory_bound else f"{short(floor['flops'] / 1e9)} GFLOP"

    def share(peer: str, title: str) -> Column:
        def cell(row: Row) -> str:
            value = row["floor_reached"].get(row["ours"] if peer == OURS else peer)
            return NOTHING if value is None else f"{100 * value:.{2 if value < 0.995 else 3}g} %"

        return title, "r", cell

    columns: tuple[Column, ...] = (
        OPERATOR_AND_DIRECTION,
        SHAPE,
        ("floor", "r", lambda row: milliseconds(max(v for k, v in row["floor"].items() if k.endswith("milliseconds")))),
        ("set by", "l", kind),
        *(share(peer, title) for peer, title in zip((EAGER, COMPILE, OURS), (c[0] for c in TIMES), strict=False)),
    )
    rows, operators = [], {}
    for file in files:
        for row in (row for row in file["rows"] if "floor" in row):
            rows.append(row)
            where = f"{rates_text(row['rates'])}; {machine_line(file['machines'][row['machine']])}"
            operators.setdefault(where, {})[f"`{row['operator']}`"] = None
    machines = [f"- {' and '.join(names)}: {where}" for where, names in operators.items()]
    text = (
        "The floor is the longer of the bytes over the copy bandwidth and the FLOP over the rate of arithmetic, "
        "both measured in the same run:"
    )
    return region(table(columns, rows), text, "\n".join(machines))


@each_file
def projects(file: File) -> str:
    """Every operator in each project's arrangement."""

    def package(row: Row) -> str:
        found = next((name for name in PACKAGES if name in row["milliseconds"]), None)
        if found is None:
            return NOTHING
        return f"{milliseconds(row['milliseconds'][found]['median'])} ({times(row['ratio'].get(found))})"

    def arrangement(row: Row) -> str:
        return str(row["arrangement"]) + ("" if row.get("dtype", "float32") == "float32" else f", {row['dtype']}")

    columns: tuple[Column, ...] = (
        OPERATOR,
        ("at", "l", lambda row: f"{row['configuration']}, {row['shape'].replace('->', '→')}"),
        ("as", "l", arrangement),
        *TIMES,
        KEPT,
        ("its package", "r", package),
        MEMORY,
        REACHED,
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
    return section(file, rows, columns, text, lines=timed(rows))


# ---- the network, and curves -----------------------------------------------------------------------------------------

network = of_operators(
    ["training_step", "inference"],
    (
        ("", "l", lambda row: row["operator"].replace("_", " ")),
        ("network", "l", shape),
        *TIMES,
        ("**ours**, compiled", "r", median_of(OURS_COMPILED)),
        REACHED,
        MEMORY,
    ),
    "Training: forward, both losses, backward. Inference: labels at full size. Medians of {rounds} rounds, the "
    "variants in turn. Compiled: `torch.compile` of this package's network. The floor is the arithmetic of the "
    "convolutions alone.",
)


@each_file
def training_step(file: File) -> str:
    """A line for each number of classes and variant."""

    def time(row: Row) -> str:
        median, low, high = (
            f"{value / 1e3:.{2 if value < 1e4 else 1}f}" for value in (row["time"][n] for n in ("median", "p20", "p80"))
        )
        return f"{median} s ({low} to {high})"

    rows = [row for row in file["rows"] if row["operator"] == "training_step"]
    columns: tuple[Column, ...] = (
        ("", "l", lambda row: row["shape"].rsplit(", ", 1)[1]),
        ("one training step with", "l", lambda row: TITLES[row["peer"]]),
        (SPREAD, "r", time),
        ("time / ours", "r", of_peer("{:.2f}".format, "ratio")),
        ("peak memory", "r", of_peer(megabytes, "peak_bytes")),
    )
    text = (
        f"{rows[0]['shape'].rsplit(', ', 1)[0]}, {rows[0]['layout']}, {rows[0]['dtype']}: forward, both losses, "
        "backward; {rounds} rounds, the variants in turn. Peak memory is what a step takes on top of network, "
        "images and labels, in a process of its own."
    )
    return section(file, rows, columns, text, lines=by_peer(rows))


@each_file
def scaling(file: File) -> str:
    """A picture and a table for each axis."""
    return region(*(_axis(file, axis, rows) for axis in AXES if (rows := rows_of_axis(file, axis))))


def rows_of_axis(file: File, axis: str) -> list[Row]:
    return [row for row in file["rows"] if row["axis"] == axis]


def _axis(file: File, axis: str, rows: Sequence[Row]) -> str:
    def ratio(row: Row) -> str:
        found = medians(row)
        return times(found[EAGER] / found[OURS] if {EAGER, OURS} <= set(found) else None)

    columns: tuple[Column, ...] = (
        OPERATOR,
        (axis, "r", lambda row: str(row["value"])),
        ("shape", "l", shape),
        TIMES[0],
        TIMES[2],
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
        f"Along the axis: {MEANING[axis]}. Forward and backward, default allocator; medians of {{rounds}} rounds, "
        "eager and this package in turn; memory is what a call takes on top of its inputs and weights."
    )
    picture = f"![Time and memory over {axis}]({file['name']}_{axis}.png)"
    return region(picture, section(file, rows, columns, text, lines=rows, notes=skipped))
