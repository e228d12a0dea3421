"""The closing tables: of every group, a line for each peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks.rows import Row
from benchmarks.suite.cases import function_words
from benchmarks.table import ceilings_text, floor_text

# Of the cores: a load up to this was the shell, and an editor.
IDLE = 0.25
LEGEND = (
    "eager: stock operators as the project named in the heading arranges them; compile: torch.compile of the same; "
    "a project's own name: its installed package.",
    "Medians and 20th to 80th percentiles of rounds in which all peers of a table took their turn; x ours: of medians, "
    "to the fastest pspnet_fast.",
    "Peak: memory beyond inputs and weights. Floor: the longer of bytes over copy bandwidth and FLOP over the better "
    "rate of a matrix product and a convolution.",
    "No page faults: the same in a process whose C library keeps its memory. Graph: replayed as a CUDA graph.",
)


def summary(rows: Iterable[Row], machine: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the rows, what they were measured with, and what the columns say."""
    timed = [row for row in rows if row.get("milliseconds") or row["failures"]]
    if not timed:
        return
    yield f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, commit {machine['commit']}"
    if machine["load"] > IDLE * machine["cores"]:
        yield f"Not to be quoted: other work was running (a load of {machine['load']} on {machine['cores']} cores)."
    if ceilings := [row["ceilings"] for row in timed if "ceilings" in row]:
        yield ceilings_text(ceilings[-1])  # the best of the run
    for row in timed:
        yield ""
        yield from group_table(row)
    yield ""
    yield from LEGEND


def group_table(row: Row) -> Iterator[str]:
    """Heading, floor, and a line for each peer: those that were timed, then those that were not and why."""
    yield ", ".join(row[name] for name in ("operator", "configuration", "shape", "dtype", "layout", "direction"))
    yield f"  as {row['arrangement']}: {function_words(row['operator'], row['arrangement'])}"
    if "floor" in row:
        yield f"  {floor_text(row['floor'])}"
    peers = list(row.get("milliseconds", {}))
    columns = [(title, [cell(row, peer) for peer in peers]) for title, cell in COLUMNS]
    columns = [(title, cells) for title, cells in columns if any(cells)]
    told = {**row.get("absent", {}), **{peer: f"FAILED: {reason}" for peer, reason in row["failures"].items()}}
    first = max(map(len, ("", *peers, *told)))

    if peers:
        widths = [max(map(len, (title, *cells))) for title, cells in columns]
        yield _line(first, "", widths, [title for title, _ in columns])
        for i, peer in enumerate(peers):
            yield _line(first, peer, widths, [cells[i] for _, cells in columns])
    for peer, reason in told.items():
        yield f"  {peer:<{first}}  {reason}"


def _line(first: int, name: str, widths: list[int], cells: list[str]) -> str:
    aligned = "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"  {name:<{first}}{aligned}".rstrip()


def _median(row: Row, peer: str) -> str:
    return milliseconds_text(row["milliseconds"][peer]["median"]) + " ms"


def _spread(row: Row, peer: str) -> str:
    time = row["milliseconds"][peer]
    return f"{milliseconds_text(time['p20'])} to {milliseconds_text(time['p80'])}"


def _times_ours(row: Row, peer: str) -> str:
    return f"{row['ratio'][peer]:.2f}" if peer in row["ratio"] else ""


def _peak(row: Row, peer: str) -> str:
    peak = row.get("peak_bytes", {}).get(peer)
    return "" if peak is None else f"{peak / 1e6:.1f} MB"


def _floor(row: Row, peer: str) -> str:
    return f"{100 * row['floor_reached'][peer]:.1f} %" if peer in row["floor_reached"] else ""


def _graph(row: Row, peer: str) -> str:
    time = row.get("graph_milliseconds", {}).get(peer)
    return "" if time is None else milliseconds_text(time["median"]) + " ms"


def _kept(row: Row, peer: str) -> str:
    time = row.get("without_page_faults", {}).get("milliseconds", {}).get(peer)
    return "" if time is None else milliseconds_text(time["median"]) + " ms"


def _kept_times_ours(row: Row, peer: str) -> str:
    ratio = row.get("without_page_faults", {}).get("times_ours", {}).get(peer)
    return "" if ratio is None else f"{ratio:.2f}"


def milliseconds_text(value: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


COLUMNS: tuple[tuple[str, Callable[[Row, str], str]], ...] = (
    ("median", _median),
    ("p20 to p80", _spread),
    ("x ours", _times_ours),
    ("peak", _peak),
    ("of floor", _floor),
    ("graph", _graph),
    ("no page faults", _kept),
    ("x ours", _kept_times_ours),
)
