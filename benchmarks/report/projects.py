"""The table of what `pytest benchmarks/ --save` saved: every operator beside each project's arrangement of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.report.markdown import (
    NOTHING,
    Results,
    Row,
    advantage,
    failures,
    machine_line,
    medians,
    milliseconds,
    region,
    rounds,
    table,
    times,
)
from benchmarks.report.operators import TIMES, memory_cell, reached_cell, time_cells
from benchmarks.suite.packages import PACKAGES


def suite(files: Sequence[Results]) -> str:
    """Of each file a row for every operator, configuration and arrangement."""
    return region(*(_suite(results) for results in files))


def _suite(results: Results) -> str:
    rows: Sequence[Row] = [row for row in results["rows"] if row.get("milliseconds")]
    columns = {"operator": "l", "at": "l", "as": "l", **TIMES, "without page faults": "r", "its package": "r"}
    columns |= {"peak memory, the better : ours": "r", "ours, of the floor's speed": "r"}
    lines = [
        [
            f"`{row['operator']}`",
            f"{row['configuration']}, {row['shape'].replace('->', '→')}",
            row["arrangement"] if row.get("dtype", "float32") == "float32" else f"{row['arrangement']}, {row['dtype']}",
            *time_cells(row),
            _kept_cell(row),
            _package_cell(row),
            memory_cell(row),
            reached_cell(row),
        ]
        for row in rows
    ]
    text = (
        f"Forward and backward, `upsample_argmax` forward alone; medians of {rounds(rows)} rounds, the variants in "
        "turn. Eager is the project's arrangement in stock operators. Without page faults: the better / ours in a "
        "process that keeps its memory. "
        f"Its package: the time of the project's own code, and how many times ours it is.{_packages(rows)}\n"
    )
    return region(table(columns, lines), *failures(results["rows"]), text + machine_line(results["machine"]))


def _kept_cell(row: Row) -> str:
    kept: Mapping[str, Row] = row.get("without_page_faults", {}).get("milliseconds", {})
    return times(advantage(medians({"milliseconds": kept, "ours": row["ours"]}))) if kept else NOTHING


def _package_cell(row: Row) -> str:
    found = next((name for name in PACKAGES if name in row["milliseconds"]), None)
    if found is None:
        return NOTHING
    return f"{milliseconds(row['milliseconds'][found]['median'])} ({times(row['ratio'].get(found))})"


def _packages(rows: Sequence[Row]) -> str:
    """Which packages were there, in which version, and which were not."""
    found = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    absent = dict.fromkeys(name for row in rows for name in row.get("absent", {}))
    text = f" Measured: {', '.join(f'{name} {version}' for name, version in found.items())}." if found else ""
    return text + (f" Not installed: {', '.join(absent)}." if absent else "")
