"""The cells, columns and lines of every table: in the pages, and at the end of a run in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers import COMPILE, EAGER, OPTIMIZED, OPTIMIZED_COMPILED, OURS, OURS_COMPILED, is_ours

Row = Mapping[str, Any]
File = Mapping[str, Any]  # a result file, and its "name" without suffix
# A column: title, alignment ("l" or "r"), and the cell of a row.
Column = tuple[str, str, Callable[[Row], str]]
Render = Callable[[Sequence[File]], str]

TITLES = {
    EAGER: "stock PyTorch, eager",
    COMPILE: "stock PyTorch, `torch.compile`",
    OURS: "**pspnet_fast**",
    OURS_COMPILED: "**pspnet_fast**, `torch.compile`",
    OPTIMIZED: "**pspnet_fast**, optimized for inference",
    OPTIMIZED_COMPILED: "**pspnet_fast**, optimized, `torch.compile`",
}
NOTHING = "–"


def table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """A Markdown table, a line for each row."""
    head = [title for title, _, _ in columns]
    rule = ["---:" if side == "r" else ":---" for _, side, _ in columns]
    lines = [[cell(row) for _, _, cell in columns] for row in rows]
    return "\n".join([_line(head), "|" + "|".join(rule) + "|", *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def region(*parts: str) -> str:
    """Tables and paragraphs, one below the other."""
    return "\n\n".join(part for part in parts if part)


def each_file(render: Callable[[File], str]) -> Render:
    """Renders every file by itself, one below the other."""
    return lambda files: region(*map(render, files))


def section(
    file: File,
    rows: Sequence[Row],
    columns: Sequence[Column],
    text: str,
    *,
    lines: Sequence[Row],
    notes: Sequence[str] = (),
) -> str:
    """A table of ``lines``, which of the ``rows`` failed, and what was measured where; "{rounds}" in the text is filled
    in."""
    note = f"{text.format(rounds=rounds(rows))}\n{machine_lines(file, rows)}"
    return region(table(columns, lines), *notes, *failures(rows), note)


def machine_lines(file: File, rows: Iterable[Row]) -> str:
    """Where the rows were measured, with what, on which sources and when: a line for each machine."""
    indices = dict.fromkeys(row["machine"] for row in rows)
    return "\n".join(machine_line(file["machines"][index]) for index in indices)


def machine_line(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}, "
        f"commit {machine['commit']}, {machine['date']}."
    )


# ---- numbers ---------------------------------------------------------------------------------------------------------


def short(number: float) -> str:
    """Three significant digits, no exponent."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{short(value)} ms"


def megabytes(value: float | None) -> str:
    """Bytes in units of 10⁶."""
    return NOTHING if value is None else f"{short(value / 1e6)} MB"


def times(value: float | None) -> str:
    """A ratio: "73×", "1.40×"."""
    return NOTHING if value is None else f"{value:.0f}×" if value >= 10 else f"{value:.2f}×"


def percent(value: float | None, digits: int = 0) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def rates_text(rates: Mapping[str, float]) -> str:
    """What the machine reaches."""
    return (
        f"copy {short(rates['copy'])} GB/s, arithmetic {short(rates['float32'])} GFLOP/s in float32 and "
        f"{short(rates['bfloat16'])} in bfloat16"
    )


# ---- what a row says -------------------------------------------------------------------------------------------------


def shape(row: Row) -> str:
    """Shape and layout, the dtype where it is not float32, and what else the logits are."""
    words = [row["shape"].replace("->", "→"), row["layout"], *([row["logits"]] if "logits" in row else [])]
    return ", ".join(words if row.get("dtype", "float32") == "float32" else [*words, row["dtype"]])


def medians(row: Row) -> dict[str, float]:
    """Milliseconds of everything that was timed; this package's fastest back end as "pspnet_fast"."""
    found = {name: timing["median"] for name, timing in row.get("milliseconds", {}).items()}
    return {**found, OURS: found[row["ours"]]} if row.get("ours") else found


def better(values: Mapping[str, float]) -> float | None:
    """The smaller of eager's and torch.compile's."""
    return min((values[peer] for peer in (EAGER, COMPILE) if peer in values), default=None)


def advantage(values: Mapping[str, float]) -> float | None:
    """How many times the better stock variant takes as much as this package."""
    stock, ours = better(values), values.get(OURS)
    return stock / ours if stock is not None and ours else None


def peaks(row: Row) -> dict[str, float]:
    """Peak bytes, those of this package's fastest back end as "pspnet_fast"."""
    return {
        OURS if is_ours(name) else name: size
        for name, size in row.get("peak_bytes", {}).items()
        if not is_ours(name) or name == row.get("ours")
    }


def rounds(rows: Iterable[Row]) -> str:
    """How many rounds the rows took: "5", or "9 to 42"."""
    counts = {timing["rounds"] for row in rows for timing in row.get("milliseconds", {}).values()} or {0}
    return " to ".join(map(str, sorted({min(counts), max(counts)})))


def failures(rows: Iterable[Row]) -> list[str]:
    """A line for each variant that failed: it has no number in the table, but its reason below."""
    return [
        f"Failed: {row['operator']}, {shape(row)}, {name}: {reason}"
        for row in rows
        for name, reason in row.get("failures", {}).items()
    ]


def timed(rows: Iterable[Row]) -> list[Row]:
    """The rows of which anything was timed."""
    return [row for row in rows if row.get("milliseconds")]


def by_peer(rows: Iterable[Row]) -> list[Row]:
    """A row for each peer that was timed."""
    return [{**row, "peer": peer, "time": time} for row in timed(rows) for peer, time in row["milliseconds"].items()]


# ---- columns ---------------------------------------------------------------------------------------------------------


def median_of(peer: str) -> Callable[[Row], str]:
    return lambda row: milliseconds(medians(row).get(peer))


def of_peer(text: Callable[[Any], str], *entry: str) -> Callable[[Row], str]:
    """A cell with the value of a peer's row in an entry, or in an entry of an entry."""

    def cell(row: Row) -> str:
        values: Any = row
        for key in entry:
            values = values.get(key, {})
        return NOTHING if values.get(row["peer"]) is None else text(values[row["peer"]])

    return cell


def median_time(time: Mapping[str, float]) -> str:
    return milliseconds(time["median"])


def spread(row: Row) -> str:
    """20th to 80th percentile of a peer's row."""
    return f"{short(row['time']['p20'])} to {short(row['time']['p80'])}"


def without_page_faults(row: Row) -> str:
    """The better / ours in a process that keeps its memory."""
    kept = row.get("without_page_faults", {}).get("milliseconds", {})
    return times(advantage(medians({"milliseconds": kept, "ours": row["ours"]}))) if kept else NOTHING


def _both(stock: float | None, ours: float | None) -> str:
    return NOTHING if stock is None or ours is None else f"{short(stock / 1e6)} : {megabytes(ours)}"


def memory_cell(row: Row) -> str:
    """Peak memory of the better stock variant and of this package, and their ratio."""
    memory, ratio = peaks(row), advantage(peaks(row))
    return _both(better(memory), memory.get(OURS)) + ("" if ratio is None else f" ({times(ratio)})")


def extra_memory(row: Row) -> str:
    """Peak memory of eager and of this package."""
    return _both(peaks(row).get(EAGER), peaks(row).get(OURS))


OPERATOR: Column = ("operator", "l", lambda row: f"`{row['operator']}`")
OPERATOR_AND_DIRECTION: Column = ("operator", "l", lambda row: f"`{row['operator']}`, {row['direction']}")
SHAPE: Column = ("of", "l", shape)
TIMES: tuple[Column, ...] = (
    ("eager", "r", median_of(EAGER)),
    ("`torch.compile`", "r", median_of(COMPILE)),
    ("**ours**", "r", median_of(OURS)),
    ("the better / ours", "r", lambda row: times(advantage(medians(row)))),
)
KEPT: Column = ("without page faults", "r", without_page_faults)
MEMORY: Column = ("peak memory, the better : ours", "r", memory_cell)
REACHED: Column = (
    "ours, of the floor's speed",
    "r",
    lambda row: percent(row.get("floor_reached", {}).get(row.get("ours"))),
)


# ---- the end of a run ------------------------------------------------------------------------------------------------

IDLE = 0.25  # of the cores: a load up to this was the shell, and an editor
LABELS = (
    "axis", "value", "model", "configuration", "shape", "dtype", "layout", "direction", "logits", "compiled",
    "arrangement",
)  # fmt: skip
LEGEND = (
    "eager: stock operators as the project named in the heading arranges them; compile: torch.compile of the same; "
    "a project's own name: its installed package.",
    "Medians and 20th to 80th percentiles of rounds in which all peers of a table took their turn; x ours: of medians, "
    "to the fastest pspnet_fast.",
    "Peak: memory beyond inputs and weights. Floor: the longer of bytes over copy bandwidth and FLOP over the better "
    "rate of a matrix product and a convolution.",
    "No page faults: the same in a process whose C library keeps its memory. Graph: replayed as a CUDA graph.",
)


PEER_COLUMNS: tuple[Column, ...] = (
    ("", "l", lambda row: row["peer"]),
    ("median", "r", of_peer(median_time, "milliseconds")),
    ("p20 to p80", "r", spread),
    ("x ours", "r", of_peer("{:.2f}".format, "ratio")),
    ("images/s", "r", of_peer(str, "images_per_second")),
    ("peak", "r", of_peer(megabytes, "peak_bytes")),
    ("of floor", "r", of_peer(lambda share: percent(share, 1), "floor_reached")),
    ("graph", "r", of_peer(median_time, "graph_milliseconds")),
    ("no page faults", "r", of_peer(median_time, "without_page_faults", "milliseconds")),
    ("x ours ", "r", of_peer("{:.2f}".format, "without_page_faults", "times_ours")),
)


def case_table(row: Row) -> Iterator[str]:
    """Heading, floor, and a line for each peer: those that were timed, then those that were not and why."""
    yield ", ".join([row["operator"], *(str(row[name]) for name in LABELS if name in row)])
    if (floor := row.get("floor")) and floor["flops"]:
        yield (
            f"floor: {floor['memory_milliseconds']:.4g} ms for {floor['bytes'] / 1e6:.4g} MB, "
            f"{floor['arithmetic_milliseconds']:.4g} ms for {floor['flops'] / 1e9:.4g} GFLOP in {floor['rate']}"
        )
    if peers := by_peer([row]):
        columns = [column for column in PEER_COLUMNS if any(column[2](peer) != NOTHING for peer in peers)]
        yield from table(columns, peers).splitlines()
    yield from (f"{peer}: {reason}" for peer, reason in row.get("skipped", {}).items())
    yield from (f"{peer} FAILED: {reason}" for peer, reason in row["failures"].items())
    for memory, found in row.get("largest_batch", {}).items():
        yield f"largest batch in {memory} GB: {', '.join(f'{peer} {batch}' for peer, batch in found.items())}"


def summary(rows: Iterable[Row], machine: Mapping[str, Any], load: float, cores: int) -> Iterator[str]:
    """The tables of the rows, what they were measured with, and what the columns mean."""
    rows = [row for row in rows if row.get("milliseconds") or row["failures"]]
    if not rows:
        return
    yield f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, commit {machine['commit']}"
    if load > IDLE * cores:
        yield f"Do not quote these numbers: other work was running (a load of {load:.2f} on {cores} cores)."
    yield from [rates_text(row["rates"]) for row in rows if "rates" in row][-1:]  # the best of the run
    for row in rows:
        yield ""
        yield from case_table(row)
    yield ""
    yield from LEGEND
