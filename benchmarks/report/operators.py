"""Tables of what benchmarks/operators.py saved, and of the same rows from a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.case import COMPILE, EAGER, OURS, OURS_COMPILED
from benchmarks.pyramid import PLAIN_READ, X_ALONE
from benchmarks.report.markdown import (
    NOTHING,
    Results,
    Row,
    advantage,
    better,
    failures,
    machine_line,
    medians,
    megabytes,
    milliseconds,
    peaks,
    percent,
    region,
    rounds,
    shape,
    short,
    table,
    times,
)

PEERS = (EAGER, COMPILE, OURS)
TIMES = {"eager": "r", "`torch.compile`": "r", "**ours**": "r", "the better / ours": "r"}


def measured_rows(results: Results, operator: str, allocator: str = "default") -> list[Row]:
    """An operator's rows of one allocator."""
    rows = (row for row in results["rows"] if row["operator"] == operator)
    return [row for row in rows if row.get("allocator", "default") == allocator]


def without_page_faults(results: Results, operator: str) -> Mapping[str, Row]:
    """The rows of a process that keeps its memory, by case."""
    return {row["case"]: row for row in measured_rows(results, operator, "no page faults")}


def kept_cell(row: Row, kept: Mapping[str, Row]) -> str:
    """The better / ours of the same case in such a process."""
    return times(advantage(medians(kept[row["case"]])) if row["case"] in kept else None)


def time_cells(row: Row) -> list[str]:
    """The cells of :data:`TIMES`."""
    found = medians(row)
    return [*(milliseconds(found.get(peer)) for peer in PEERS), times(advantage(found))]


def cross_entropy(files: Sequence[Results]) -> str:
    """Both losses, with the default allocator and without page faults."""
    return _with_page_faults(files[0], "dual_cross_entropy", "both losses, forward and backward")


def upsample_argmax(files: Sequence[Results]) -> str:
    """Arg-max of upsampled logits."""
    return _with_page_faults(files[0], "upsample_argmax", "labels from low-resolution logits")


def _with_page_faults(results: Results, operator: str, title: str) -> str:
    rows, kept = measured_rows(results, operator), without_page_faults(results, operator)
    columns = {title: "l", **TIMES, "without page faults": "r", "extra memory, eager : ours": "r"}
    lines = []
    for row in rows:
        memory = peaks(row)
        sizes = f"{short(memory[EAGER] / 1e6)} : {megabytes(memory[OURS])}" if {EAGER, OURS} <= set(memory) else NOTHING
        lines.append([shape(row), *time_cells(row), kept_cell(row, kept), sizes])
    text = (
        f"Batch×classes×height×width → height×width, float32; medians of {rounds(rows)} rounds, the variants in turn. "
        "Eager pays much of its time for memory that the C library returns and takes anew, page by page: the last but "
        "one column is of a process that keeps its memory.\n" + machine_line(results["machine"])
    )
    return region(table(columns, lines), *failures(rows), text)


def pyramid_pool(files: Sequence[Results]) -> str:
    """Pooling to all levels, beside a plain read of its input."""
    (results,) = files
    rows, kept = measured_rows(results, "pyramid_pool"), without_page_faults(results, "pyramid_pool")
    columns = {"pooling of": "l", "direction": "l", **TIMES, "without page faults": "r", "`x.sum()`": "r"}
    lines = [
        [
            shape(row),
            row["direction"],
            *time_cells(row),
            kept_cell(row, kept),
            milliseconds(medians(row).get(PLAIN_READ)),
        ]
        for row in rows
    ]
    text = (
        f"To 1×1, 2×2, 3×3 and 6×6 cells; medians of {rounds(rows)} rounds, the variants in turn. `x.sum()` is one "
        "read of the same tensor with nothing else. Without page faults: the better / ours in a process that keeps its "
        "memory, where a gradient is written into pages that are there.\n" + machine_line(results["machine"])
    )
    return region(table(columns, lines), *failures(rows), text)


def psp_head(files: Sequence[Results]) -> str:
    """The head's training step, and how much of it is the convolution that nobody can avoid."""
    (results,) = files
    rows, kept = measured_rows(results, "psp_head"), without_page_faults(results, "psp_head")
    columns = {"head over": "l", **TIMES, "without page faults": "r", "convolution of x alone": "r"}
    columns["peak memory, the better : ours"] = "r"
    lines = []
    for row in rows:
        found = medians(row)
        share = found[X_ALONE] / found[OURS] if {X_ALONE, OURS} <= set(found) else None
        lines.append(
            [shape(row), *time_cells(row), kept_cell(row, kept), f"{percent(share)} of ours", memory_cell(row)]
        )
    text = (
        "Pyramid pooling, its levels, 3×3 convolution, batch normalisation and ReLU: results, gradients of the input "
        f"and of every parameter; medians of {rounds(rows)} rounds, the variants in turn. `convolution of x alone` is "
        "the same step without any pyramid. Without page faults: the better / ours in a process that keeps its "
        "memory.\n" + machine_line(results["machine"])
    )
    return region(table(columns, lines), *failures(rows), text)


def memory_cell(row: Row) -> str:
    """Peak memory of the better stock variant and of this package, and their ratio."""
    memory = peaks(row)
    stock, ratio = better(memory), advantage(memory)
    if stock is None or ratio is None:
        return NOTHING
    return f"{short(stock / 1e6)} : {megabytes(memory[OURS])} ({times(ratio)})"


def reached_cell(row: Row) -> str:
    """What share of the floor's speed this package reaches."""
    return percent(row.get("floor_reached", {}).get(row.get("ours")))


def network(files: Sequence[Results]) -> str:
    """The whole network: a training step, and inference to labels."""
    (results,) = files
    rows = [row for name in ("training_step", "inference") for row in measured_rows(results, name)]
    columns = {
        "": "l",
        "network": "l",
        **TIMES,
        "**ours**, compiled": "r",
        "ours, of the floor's speed": "r",
        "peak memory, the better : ours": "r",
    }
    lines = [
        [
            row["operator"].replace("_", " "),
            shape(row),
            *time_cells(row),
            milliseconds(medians(row).get(OURS_COMPILED)),
            reached_cell(row),
            memory_cell(row),
        ]
        for row in rows
    ]
    text = (
        f"Training: forward, both losses, backward. Inference: labels at full size. Medians of {rounds(rows)} rounds, "
        "the variants in turn. Compiled: `torch.compile` of this package's network. The floor is the arithmetic of the "
        "convolutions alone.\n" + machine_line(results["machine"])
    )
    return region(table(columns, lines), *failures(rows), text)


def floors(files: Sequence[Results]) -> str:
    """Of every row of the operators' files the floor, what sets it, and what share of its speed is reached."""
    columns = {"operator": "l", "of": "l", "floor": "r", "set by": "l", "eager": "r", "`torch.compile`": "r"}
    lines, machines = [], []
    for results in files:
        rows = [row for row in results["rows"] if row.get("allocator", "default") == "default" and "floor" in row]
        lines += [_floor_cells(row) for row in rows]
        rates = next((row["ceilings"] for row in rows if "ceilings" in row), None)
        if rates:
            names = dict.fromkeys(f"`{row['operator']}`" for row in rows)
            machines.append(f"- {' and '.join(names)}: {_rates(rates)}; {machine_line(results['machine'])}")
    text = (
        "The floor is the longer of the bytes over the copy bandwidth and the FLOP over the rate of arithmetic, "
        "both measured in the same run:"
    )
    return region(table({**columns, "**ours**": "r"}, lines), text, "\n".join(machines))


def _floor_cells(row: Row) -> list[str]:
    floor, reached = row["floor"], dict(row["floor_reached"])
    memory, arithmetic = floor["memory_milliseconds"], floor["arithmetic_milliseconds"]
    kind = f"{short(floor['bytes'] / 1e6)} MB" if memory > arithmetic else f"{short(floor['flops'] / 1e9)} GFLOP"
    shares = (reached.get(name) for name in (EAGER, COMPILE, row["ours"]))
    cells = (NOTHING if share is None else f"{100 * share:.{2 if share < 0.995 else 3}g} %" for share in shares)
    name = f"`{row['operator']}`, {row['direction']}"
    return [name, shape(row), milliseconds(max(memory, arithmetic)), kind, *cells]


def _rates(rates: Mapping[str, float]) -> str:
    return (
        f"copy {short(rates['copy'])} GB/s, arithmetic {short(rates['float32'])} GFLOP/s in float32 and "
        f"{short(rates['bfloat16'])} in bfloat16"
    )


def gpu(files: Sequence[Results]) -> str:
    """Of every GPU: what was tested, the operators' rows, and the training of both roads."""
    return region(*(part for results in files for part in _gpu_parts(results)))


def _gpu_parts(results: Results) -> list[str]:
    rows: list[Any] = results["rows"]
    columns = {"operator": "l", "of": "l", **TIMES, "as a CUDA graph, ours": "r", "ours, of the floor's speed": "r",
               "peak memory, the better : ours": "r"}  # fmt: skip
    lines = []
    for row in rows:
        graph = row.get("graph_milliseconds", {}).get(row.get("ours"), {}).get("median")
        name = f"`{row['operator']}`, {row['direction']}"
        lines.append([name, shape(row), *time_cells(row), milliseconds(graph), reached_cell(row), memory_cell(row)])
    tests = "; ".join(
        f"{name} {counts['passed']} passed, {counts['failed']} failed" for name, counts in results["tests"].items()
    )
    machine = results["machine"]
    where = f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, " + (
        f"triton {machine['triton']}, commit {machine['commit']}, {machine['date']}."
    )
    return [
        f"### {machine['device']}",
        table(columns, lines) if lines else "",
        *failures(rows),
        f"Tests by back end: {tests}." if tests else "",
        _gpu_training(results.get("sections", {}).get("train", {})),
        where,
    ]


def _gpu_training(section: Mapping[str, Any]) -> str:
    """Plain and fused training: the largest difference in float64, then mIoU and speed."""
    if "roads" not in section:
        return ""
    roads = "; ".join(
        f"{name} {values['miou']:.3f} mIoU at {values['images_per_second']:.0f} images a second"
        for name, values in section["roads"].items()
    )
    difference = section["float64"]["largest_difference"]["fused"]
    return f"Training: losses in float64 differ by {difference:.1e} at most; {roads}."
