"""Tables of operators: their times, their floors, other projects, and all that was measured on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.markdown import (
    KEPT,
    MEMORY,
    NOTHING,
    REACHED,
    SHAPE,
    TIMES,
    Column,
    File,
    Row,
    extra_memory,
    failures,
    machine_line,
    machine_lines,
    median_of,
    medians,
    milliseconds,
    percent,
    region,
    rounds,
    shape,
    short,
    table,
    times,
)
from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED, PACKAGES
from benchmarks.pyramid import PLAIN_READ, X_ALONE

KEEPS = "Without page faults: the better / ours in a process that keeps its memory."


def timed(operators: Sequence[str], columns: Sequence[Column], text: str) -> Callable[[Sequence[File]], str]:
    """Renders the timed rows of some operators (of all, where empty), what failed, and what was measured where."""

    def render(files: Sequence[File]) -> str:
        return region(*(timed_table(file, measured(file, *operators), columns, text) for file in files))

    return render


def timed_table(file: File, rows: Sequence[Row], columns: Sequence[Column], text: str) -> str:
    note = f"{text.format(rounds=rounds(rows))}\n{machine_lines(file, rows)}"
    return region(table(columns, [row for row in rows if row.get("milliseconds")]), *failures(rows), note)


def measured(file: File, *operators: str) -> list[Row]:
    """The rows of these operators, in their order; all without any."""
    return [row for operator in operators for row in file["rows"] if row["operator"] == operator] or file["rows"]


# ---- operators -------------------------------------------------------------------------------------------------------


def alone(row: Row) -> str:
    """The share of the convolution of x alone in this package's time."""
    found = medians(row)
    return f"{percent(found[X_ALONE] / found[OURS] if {X_ALONE, OURS} <= set(found) else None)} of ours"


UPSAMPLED = (
    "Batch×classes×height×width → height×width, float32; medians of {rounds} rounds, the variants in turn. Eager "
    f"spends much of its time on memory that the C library returns and maps again, page by page. {KEEPS}"
)
EXTRA: Column = ("extra memory, eager : ours", "r", extra_memory)
cross_entropy = timed(
    ["dual_cross_entropy"], (("both losses, forward and backward", "l", shape), *TIMES, KEPT, EXTRA), UPSAMPLED
)
upsample_argmax = timed(
    ["upsample_argmax"], (("labels from low-resolution logits", "l", shape), *TIMES, KEPT, EXTRA), UPSAMPLED
)
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
