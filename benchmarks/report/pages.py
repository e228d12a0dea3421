"""The pages and their regions: which results fill which table, and the command that measures them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT
from benchmarks.report import curves, network, operators, projects
from benchmarks.report.markdown import Results, region

README, BENCHMARKS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Table:
    """One region.

    Attributes:
        files: names in results/ without suffix, or patterns of them.
        command: measures them anew.
        render: Markdown of all files that are there, of one at least.
    """

    files: tuple[str, ...]
    command: str
    render: Callable[[Sequence[Results]], str]


def operators_table(only: str, render: Callable[[Sequence[Results]], str]) -> Table:
    """A table of the file that benchmarks/operators.py saves for ``--only``."""
    files = (f"operators_cpu_{only.replace(',', '_')}",)
    return Table(files, f"python -m benchmarks.operators --only {only} --save", render)


LOSSES, NETWORK = "dual_cross_entropy,upsample_argmax", "training_step,inference"
EACH = (LOSSES, "pyramid_pool", "psp_head", NETWORK)

TABLES: dict[str, Table] = {
    "training_step": operators_table(NETWORK, network.training_step),
    "cross_entropy": operators_table(LOSSES, operators.cross_entropy),
    "upsample_argmax": operators_table(LOSSES, operators.upsample_argmax),
    "pyramid_pool": operators_table("pyramid_pool", operators.pyramid_pool),
    "psp_head": operators_table("psp_head", operators.psp_head),
    "network": operators_table(NETWORK, operators.network),
    "suite": Table(("suite_cpu", "suite_gpu"), "pytest benchmarks/ --save", projects.suite),
    "floors": Table(
        tuple(f"operators_cpu_{only.replace(',', '_')}" for only in EACH),
        f"for only in {' '.join(EACH)}; do python -m benchmarks.operators --only $only --save; done",
        operators.floors,
    ),
    "end_to_end": Table(
        ("end_to_end_cpu_321_19", "end_to_end_gpu_473_150"), "python -m benchmarks.end_to_end", network.end_to_end
    ),
    "scaling": Table(("scaling_*",), "python -m benchmarks.scaling", curves.scaling),
    "agreement": Table(("agreement_camvid",), "python -m benchmarks.agreement --root data/camvid", curves.agreement),
    "aux_weight": Table(
        ("aux_weight_camvid",), "python -m benchmarks.aux_weight --root data/camvid --save", curves.aux_weight
    ),
    "gpu": Table(("gpu_*",), "python -m benchmarks.gpu --out runs/gpu --save", operators.gpu),
}
# What stands on which page: the README shows what the project is judged by, the other page all of it.
PAGES: dict[Path, tuple[str, ...]] = {README: ("training_step", "cross_entropy"), BENCHMARKS: tuple(TABLES)}

_REGION = re.compile(r"(<!-- benchmark:(\w+) -->\n)(.*?)(<!-- /benchmark -->)", re.DOTALL)


def load(results: Path, patterns: Sequence[str]) -> list[Results]:
    """The result files that match, each with its "name"; in the order of the patterns, then of the alphabet."""
    paths = [path for pattern in patterns for path in sorted(results.glob(f"{pattern}.json"))]
    return [{**json.loads(path.read_text(encoding="utf-8")), "name": path.stem} for path in paths]


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
