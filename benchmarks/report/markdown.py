"""What every rendered table is made of: cells, numbers, the machine it was measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.case import COMPILE, EAGER, OURS, OURS_COMPILED, is_ours

Results = Mapping[str, Any]  # a file of results/: "machine", "rows", and its "name" without suffix
Row = Mapping[str, Any]

TITLES = {
    EAGER: "stock PyTorch, eager",
    COMPILE: "stock PyTorch, `torch.compile`",
    OURS: "**pspnet_fast**",
    OURS_COMPILED: "**pspnet_fast**, `torch.compile`",
}
NOTHING = "–"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. ``columns``: each title with its alignment, "l" or "r"."""
    rule = ["---:" if side == "r" else ":---" for side in columns.values()]
    return "\n".join([_line(list(columns)), "|" + "|".join(rule) + "|", *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def machine_line(machine: Mapping[str, Any]) -> str:
    """Where, with what, on which sources and when."""
    return (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}, "
        f"commit {machine['commit']}, {machine['date']}."
    )


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


def region(*parts: str) -> str:
    """Tables and paragraphs, one below the other."""
    return "\n\n".join(part for part in parts if part)
