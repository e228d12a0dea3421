"""The cells and lines that every rendered table is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED, is_ours

Row = Mapping[str, Any]
File = Mapping[str, Any]  # a result file, and its "name" without suffix
# A column: title, alignment ("l" or "r"), and the cell of a row.
Column = tuple[str, str, Callable[[Row], str]]

TITLES = {
    EAGER: "stock PyTorch, eager",
    COMPILE: "stock PyTorch, `torch.compile`",
    OURS: "**pspnet_fast**",
    OURS_COMPILED: "**pspnet_fast**, `torch.compile`",
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


def seconds(value: float) -> str:
    """Milliseconds as seconds."""
    return f"{value / 1e3:.2f}" if value < 1e4 else f"{value / 1e3:.1f}"


def megabytes(value: float | None) -> str:
    """Bytes in units of 10⁶."""
    return NOTHING if value is None else f"{short(value / 1e6)} MB"


def times(value: float | None) -> str:
    """A ratio: "73×", "1.40×"."""
    return NOTHING if value is None else f"{value:.0f}×" if value >= 10 else f"{value:.2f}×"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


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
    stock = [values[peer] for peer in (EAGER, COMPILE) if peer in values]
    return min(stock) if stock else None


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


# ---- columns ---------------------------------------------------------------------------------------------------------


def median_of(peer: str) -> Callable[[Row], str]:
    return lambda row: milliseconds(medians(row).get(peer))


def without_page_faults(row: Row) -> str:
    """The better / ours in a process that keeps its memory."""
    kept = row.get("without_page_faults", {}).get("milliseconds", {})
    return times(advantage(medians({"milliseconds": kept, "ours": row["ours"]}))) if kept else NOTHING


def memory_cell(row: Row) -> str:
    """Peak memory of the better stock variant and of this package, and their ratio."""
    memory = peaks(row)
    stock, ratio = better(memory), advantage(memory)
    if stock is None or ratio is None:
        return NOTHING
    return f"{short(stock / 1e6)} : {megabytes(memory[OURS])} ({times(ratio)})"


def extra_memory(row: Row) -> str:
    """Peak memory of eager and of this package."""
    memory = peaks(row)
    if not {EAGER, OURS} <= set(memory):
        return NOTHING
    return f"{short(memory[EAGER] / 1e6)} : {megabytes(memory[OURS])}"


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
