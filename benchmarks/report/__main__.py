"""Fills the tables of README.md and docs/benchmarks.md from results/*.json, and draws the pictures in docs/.

    python -m benchmarks.report              rewrite what stands between the markers, draw what has changed
    python -m benchmarks.report --check      only say whether all is up to date (exit code 1: it is not)

A table stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->`` (pages.py says which files fill it). A
picture has the name of its result file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import RESULTS
from benchmarks.report import plots
from benchmarks.report.pages import BENCHMARKS, PAGES, TABLES, filled, load


def outdated(
    *,
    write: bool,
    pages: Mapping[Path, Collection[str]] = PAGES,
    pictures: Path = BENCHMARKS.parent,
    results: Path = RESULTS,
) -> list[str]:
    """Names of the pages and pictures that differ from the results; with ``write`` they are made anew."""
    names = []
    for page, tables in pages.items():
        before = page.read_text(encoding="utf-8")
        after = filled(before, tables, results)
        if before != after:
            names.append(page.name)
            if write:
                page.write_text(after, encoding="utf-8")
    for file in load(results, [pattern for table in TABLES.values() for pattern in table.files]):
        if plots.figure_of(file["name"]) and not plots.is_current(file, pictures):
            names.append(f"{file['name']}.svg")
            if write:
                plots.draw(file, pictures)
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something differs")
    options = parser.parse_args(arguments)
    names = outdated(write=not options.check)
    if not names:
        print("pages and pictures are up to date")
    elif options.check:
        sys.exit(f"{', '.join(names)}: not what benchmarks/results has; run `python -m benchmarks.report`")
    else:
        print(f"written: {', '.join(names)}")


if __name__ == "__main__":
    main()
