"""Fills the tables of README.md and docs/benchmarks.md from results/*.json, and draws the pictures in docs/.

    python -m benchmarks.report              rewrite what stands between the markers, draw what has changed
    python -m benchmarks.report --check      only report whether all is up to date (exit code 1: it is not)
    python -m benchmarks.report --measure    measure README's tables on this machine first, and print them

A table stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->``. No number enters the pages in another
way.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import pictures, render, render_networks, render_training
from benchmarks.markdown import Table, region
from benchmarks.render_training import GPU
from benchmarks.results import RESULTS, ROOT, load

README, BENCHMARKS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
_REGION = re.compile(r"(<!-- benchmark:(\w+) -->\n)(.*?)(<!-- /benchmark -->)", re.DOTALL)


TABLES: dict[str, Table] = {
    name: table
    for module in (render, render_networks, render_training)
    for name, table in vars(module).items()
    if isinstance(table, Table)
}
# What stands on which page: the README shows what the project is judged by, the other page all of it.
PAGES: dict[Path, tuple[str, ...]] = {
    README: ("training_step", "gpu_network", "cross_entropy"),
    ROOT / "docs" / "accelerate.md": ("accelerate",),
    ROOT / "docs" / "deploy.md": ("runtimes", "scales"),
    ROOT / "docs" / "own_data.md": ("recompute",),
    # gpu_network are rows of the table "gpu".
    BENCHMARKS: tuple(name for name in TABLES if name not in ("gpu_network", "recompute")),
}


def rendered(table: Table, results: Path = RESULTS) -> str:
    """What stands between a table's markers; where nothing has been measured yet, how to do it."""
    files = load(results, table.files)
    if not files:
        return f"Not measured yet: `{table.command}`, then `python -m benchmarks.report`.\n"
    return region(table.render(files), f"Reproduced by `{table.command}`.") + "\n"


def filled(page: str, names: Collection[str], results: Path = RESULTS) -> str:
    """``page`` with every table rendered anew.

    Raises:
        ValueError: its markers are not those of ``names``, each once.
    """
    found = [match.group(2) for match in _REGION.finditer(page)]
    if sorted(found) != sorted(names):
        raise ValueError(f"the page has markers for {found}, the report has tables for {list(names)}")
    return _REGION.sub(lambda match: match.group(1) + rendered(TABLES[match.group(2)], results) + match.group(4), page)


def outdated(
    *,
    write: bool,
    pages: Mapping[Path, Collection[str]] = PAGES,
    folder: Path = BENCHMARKS.parent,
    results: Path = RESULTS,
) -> list[str]:
    """Names of the pages and pictures that differ from the results; with ``write`` they are written anew."""
    names = []
    for page, tables in pages.items():
        before = page.read_text(encoding="utf-8")
        after = filled(before, tables, results)
        if before != after:
            names.append(page.name)
            if write:
                page.write_text(after, encoding="utf-8")
    for file in load(results, [pattern for table in TABLES.values() for pattern in table.files]):
        for name, figure_of in pictures.figures_of(file):
            if not pictures.is_current(file, name, folder):
                names.append(f"{name}{pictures.SUFFIX}")
                if write:
                    pictures.draw(file, name, figure_of, folder)
    return names


def measure(names: Sequence[str]) -> None:
    """Run the commands that measure these tables anew, each once; those of a GPU where torch sees one.

    Raises:
        SystemExit: one of them failed; what those before it measured is kept.
    """
    for command in dict.fromkeys(TABLES[name].command for name in names):
        if command == GPU and not torch.cuda.is_available():
            continue
        print(f"$ {command}", flush=True)
        words = [word for word in shlex.split(command) if word not in ("python", "-m")]
        if code := subprocess.run([sys.executable, "-m", *words], cwd=ROOT).returncode:
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
