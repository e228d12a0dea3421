"""Reads the reports of pytest (JUnit) and compute-sanitizer."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT

_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_FINDING = re.compile(r"^=+ +(Invalid|Misaligned|Uninitialized|Out-of-range|Error:|Warning:|Race|Potential|Barrier)")
_GLOBAL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")


def count_junit(path: Path) -> dict[str, int]:
    """Passed, failed (with errors in fixtures) and skipped tests of a pytest run; all 0 where it left no report."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in ElementTree.parse(path).iter("testsuite") if path.is_file() else ():
        tests, errors, failures, skipped = (
            int(suite.get(name, 0)) for name in ("tests", "errors", "failures", "skipped")
        )
        counts["passed"] += tests - errors - failures - skipped
        counts["failed"] += errors + failures
        counts["skipped"] += skipped
    return counts


def read_sanitizer(report: Path, junit: Path) -> dict[str, Any]:
    """The verdict on one run: the tool found nothing in this project's kernels, and the program under it ended well.

    After a crash the tool reports no errors either, so pytest's own report must exist, with tests that passed.
    Errors that cannot be attributed count as this project's.
    """
    text = report.read_text(errors="replace") if report.is_file() else ""
    lines, kernels = text.splitlines(), re.compile(rf"\b({'|'.join(own_kernels())})\b")
    starts = [index for index, line in enumerate(lines) if _FINDING.match(line)]
    blocks = [" ".join(part.lstrip("= ") for part in lines[index : index + 4]) for index in starts]
    problems = ours = [block[:300] for block in blocks if kernels.search(block)]
    summaries, counts = [int(number) for number in _SUMMARY.findall(text)], count_junit(junit)
    if not summaries:
        problems = [*ours, "the tool printed no summary"]
    elif sum(summaries) and not blocks:
        problems = [f"{sum(summaries)} errors of unknown origin"]
    if counts["failed"] or not counts["passed"]:
        problems = [*problems, f"tests under the tool: {counts}"]
    return {"errors": sum(summaries), "ours": len(ours), "others": len(blocks) - len(ours), "problems": problems}


def own_kernels(root: Path = ROOT) -> list[str]:
    """The names of the kernels in csrc/cuda and pspnet_fast/triton."""
    names: set[str] = set()
    for path in (root / "csrc" / "cuda").rglob("*.cu*"):
        names |= set(_GLOBAL.findall(path.read_text(encoding="utf-8")))
    for path in (root / "pspnet_fast" / "triton").glob("*.py"):
        names |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    return sorted(names)
