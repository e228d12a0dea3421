"""Section bench: operators and network on the GPU, beside stock eager and torch.compile (see benchmarks/rows.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.case import Case
from benchmarks.ceilings import measure_ceilings
from benchmarks.gpu.section import Findings
from benchmarks.rows import Row, all_cases, measure_all
from benchmarks.table import ceilings_text, row_text

DRY_RUN_ROUNDS = 1
CASE_SECONDS = 30.0  # compiling alone takes as long


def run(findings: Findings) -> None:
    """Rows of the chosen operators; others are kept from an earlier run with the same kernels."""
    options = findings.options
    dry = options.device == "cpu"
    try:
        cases = all_cases(options.device, quick=options.quick or dry, only=filter(None, options.cases.split(",")))
    except ValueError as error:
        findings.problem(f"--cases: {error}")
        return
    ceilings = measure_ceilings(options.device, quick=options.quick or dry)
    print(ceilings_text(ceilings.as_dict()), flush=True)

    rows: dict[str, Row] = {row["case"]: row for row in findings.previous().get("rows", [])}
    findings.add(ceilings=ceilings.as_dict(), rows=list(rows.values()))
    for row in measure_all(_in_time(cases, findings), ceilings, DRY_RUN_ROUNDS if dry else None):
        row["ceilings"] = ceilings.as_dict()
        rows[row["case"]] = row
        findings.add(rows=list(rows.values()))
        print(row_text(row), flush=True)
        for peer, reason in row["failures"].items():
            findings.problem(f"{row['case']}: {peer}: {reason}")


def _in_time(cases: Iterable[Case], findings: Findings) -> Iterator[Case]:
    """The cases that there is time for; the others are told, and can be measured by themselves (``--cases``)."""
    for case in cases:
        if findings.seconds_left < CASE_SECONDS:
            findings.problem(f"no time was left for {case.id}")
        else:
            yield case
