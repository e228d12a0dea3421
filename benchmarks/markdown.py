"""What tables are made of, in the pages and at the end of a run: files, commands, lines, columns, cells."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import COMPILE, EAGER, OPTIMIZED, OPTIMIZED_COMPILED, OURS, OURS_COMPILED, is_ours

Row = Mapping[str, Any]
File = Mapping[str, Any]  # a result file, and its "name" without suffix
Cell = Callable[[Row], str]
Column = tuple[str, str, Cell]  # title, alignment ("l" or "r"), and the cell of a row

TITLES = {
    EAGER: "stock PyTorch, eager",
    COMPILE: "stock PyTorch, `torch.compile`",
    OURS: "**pspnet_fast**",
    OURS_COMPILED: "**pspnet_fast**, `torch.compile`",
    OPTIMIZED: "**pspnet_fast**, optimized for inference",
    OPTIMIZED_COMPILED: "**pspnet_fast**, optimized, `torch.compile`",
}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """One table of the pages, or a group of them.

    Attributes:
        files: names in results/ without suffix, or patterns of them.
        command: measures them anew.
        render: Markdown of all files that exist, of one at least.
    """

    files: tuple[str, ...]
    command: str
    render: Callable[[Sequence[File]], str]


def measured_by(table: str, selection: str = "") -> str:
    """The command that measures a table of cases.py, or the cases of some operators in it."""
    expression = f"{table} and ({selection})" if " or " in selection else " and ".join(filter(None, (table, selection)))
    return f"pytest benchmarks/ --save -k {shlex.quote(expression) if ' ' in expression else expression}"


def from_files(*files: str, command: str) -> Callable[[Callable[[File], str]], Table]:
    """Makes a :class:`Table` of a function that renders one file; several stand one below the other."""
    return lambda render: Table(files, command, lambda found: region(*map(render, found)))


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


def section(
    file: File,
    rows: Sequence[Row],
    columns: Sequence[Column],
    text: str,
    *,
    lines: Sequence[Row],
    notes: Sequence[str] = (),
) -> str:
    """A table of ``lines``, which of the ``rows`` failed, and what was measured where, the {rounds} filled in."""
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


def median_of(peer: str) -> Cell:
    return lambda row: milliseconds(medians(row).get(peer))


def over_ours(
    values: Callable[[Row], Mapping[str, float]], peer: str, text: Callable[[float | None], str] = times
) -> Cell:
    """What part of this package's value (time, memory) a peer's is."""

    def cell(row: Row) -> str:
        found = values(row)
        return text(found[peer] / found[OURS] if {peer, OURS} <= set(found) else None)

    return cell


def of_peer(text: Callable[[Any], str], *entry: str) -> Cell:
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
OURS_COMPILED_TIME: Column = ("**ours**, compiled", "r", median_of(OURS_COMPILED))
