"""Fills the tables of README.md and docs/benchmarks.md from results/*.json, and draws the pictures in docs/.

    python -m benchmarks.report              rewrite what stands between the markers, draw what has changed
    python -m benchmarks.report --check      only say whether all is up to date (exit code 1: it is not)
    python -m benchmarks.report --measure    measure README's tables on this machine first, and print them

A table stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->`` (pages.py says which files fill it). A
picture has the name of its result file.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT
from benchmarks.report import plots
from benchmarks.report.pages import BENCHMARKS, PAGES, README, TABLES, filled, load, rendered


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


def measure(names: Sequence[str]) -> None:
    """Run the commands that measure these tables anew, each once.

    Raises:
        SystemExit: one of them failed; what those before it measured is kept.
    """
    for command in dict.fromkeys(TABLES[name].command for name in names):
        print(f"$ {command}", flush=True)
        program, *arguments = shlex.split(command)
        assert program == "python"
        if code := subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode:
            sys.exit(f"`{command}` ended with exit code {code}; the pages are as they were")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something differs")
    instead.add_argument("--measure", action="store_true", help="README's tables, in about 20 minutes on two cores")
    options = parser.parse_args(arguments)
    if options.measure:
        measure(PAGES[README])
        print("\n".join(rendered(TABLES[name]) for name in PAGES[README]))
    names = outdated(write=not options.check)
    if not names:
        print("pages and pictures are up to date")
    elif options.check:
        sys.exit(f"{', '.join(names)}: not what benchmarks/results has; run `python -m benchmarks.report`")
    else:
        print(f"written: {', '.join(names)}")


if __name__ == "__main__":
    main()
