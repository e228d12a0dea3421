"""The tables of the pages: floors, other projects, networks, curves, trainings, GPUs.

Each function makes Markdown of the result files that a table of report.py is filled from. Those of operators alone are
in render_operators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    Row,
    by_peer,
    failures,
    machine_line,
    machine_lines,
    median_of,
    medians,
    megabytes,
    milliseconds,
    peaks,
    rates_text,
    region,
    rounds,
    shape,
    short,
    table,
    times,
)
from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED, PACKAGES

Render = Callable[[Sequence[File]], str]
KEEPS = "Without page faults: the better / ours in a process that keeps its memory."
SPREAD = "time, median (20th to 80th percentile)"
MEANING = {
    "classes": "classes of the two losses",
    "batch": "images",
    "size": "height and width of the crops, pixels",
    "threads": "threads",
}


def timed(operators: Sequence[str], columns: Sequence[Column], text: str) -> Render:
    """Renders the timed rows of some operators, what failed, and what was measured where."""
    return lambda files: region(*(timed_table(file, measured(file, *operators), columns, text) for file in files))


def timed_table(file: File, rows: Sequence[Row], columns: Sequence[Column], text: str) -> str:
    note = f"{text.format(rounds=rounds(rows))}\n{machine_lines(file, rows)}"
    return region(table(columns, [row for row in rows if row.get("milliseconds")]), *failures(rows), note)


def measured(file: File, *operators: str) -> list[Row]:
    """The rows of these operators, in their order; all where there are none of them."""
    return [row for operator in operators for row in file["rows"] if row["operator"] == operator] or file["rows"]


network = timed(
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


def projects(files: Sequence[File]) -> str:
    """Every operator in each project's arrangement."""

    def package(row: Row) -> str:
        found = next((name for name in PACKAGES if name in row["milliseconds"]), None)
        if found is None:
            return NOTHING
        return f"{milliseconds(row['milliseconds'][found]['median'])} ({times(row['ratio'].get(found))})"

    def arrangement(row: Row) -> str:
        return str(row["arrangement"]) + ("" if row.get("dtype", "float32") == "float32" else f", {row['dtype']}")

    def of_file(file: File) -> str:
        versions = {name: version for row in file["rows"] for name, version in row.get("versions", {}).items()}
        skipped = dict.fromkeys(name for row in file["rows"] for name in row.get("skipped", {}))
        text = (
            "Forward and backward, `upsample_argmax` forward alone; medians of {rounds} rounds, the variants in turn. "
            f"Eager is the project's arrangement in stock operators. {KEEPS} Its package: the time of the project's "
            "own code, and how many times ours it is."
        )
        text += f" Measured: {', '.join(f'{n} {version}' for n, version in versions.items())}." if versions else ""
        text += f" Not installed: {', '.join(skipped)}." if skipped else ""
        return timed_table(file, file["rows"], columns, text)

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
    return region(*map(of_file, files))


# ---- the network -----------------------------------------------------------------------------------------------------


def training_step(files: Sequence[File]) -> str:
    """A line for each number of classes and variant."""

    def time(row: Row) -> str:
        median, low, high = (
            f"{value / 1e3:.{2 if value < 1e4 else 1}f}" for value in (row["time"][n] for n in ("median", "p20", "p80"))
        )
        return f"{median} s ({low} to {high})"

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
        f"Along the axis: {MEANING[axis]}. Forward and backward, default allocator; medians of {rounds(rows)} rounds, "
        "eager and this package in turn; memory is what a call takes on top of its inputs and weights.\n"
    )
    picture = f"![Time and memory over {axis}]({file['name']}_{axis}.png)"
    return region(picture, table(columns, rows), *skipped, *failures(rows), text + machine_lines(file, rows))
