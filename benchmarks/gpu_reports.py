"""Reads the reports of pytest (JUnit), nvcc (``-Xptxas=-v``) and compute-sanitizer."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT

_BACKEND = re.compile(r"\[(composed-cuda|composed|reference|cpu|triton|cuda)[-\]]")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_COMPILING = re.compile(r"Compiling entry function '(\w+)'")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_FINDING = re.compile(r"^=+ +(Invalid|Misaligned|Uninitialized|Out-of-range|Error:|Warning:|Race|Potential|Barrier)")
_GLOBAL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")
OTHER = "other"  # tests without a back end
ABOUT_BACKENDS = ("test_backend",)  # modules whose parameters are names of back ends, on which nothing runs
KEPT = 20


def count_junit(paths: Iterable[Path]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Passed, failed and skipped tests by the back end in each test's id, and the names of the first failed ones."""
    counts: dict[str, dict[str, int]] = {}
    failures: list[str] = []
    for case in (case for path in paths for case in ElementTree.parse(path).iter("testcase")):
        name, module = case.get("name", ""), case.get("classname", "")
        found = None if module.split(".")[-1] in ABOUT_BACKENDS else _BACKEND.search(name)
        own = counts.setdefault(found[1] if found else OTHER, {"passed": 0, "failed": 0, "skipped": 0})
        broken = [child for child in case if child.tag in ("failure", "error")]  # an error in a fixture is a failure
        kind = "failed" if broken else "skipped" if case.find("skipped") is not None else "passed"
        own[kind] += 1
        if broken and len(failures) < KEPT:
            message = (broken[0].get("message") or "").strip().splitlines() or [""]
            failures.append(f"{module}::{name}: {message[0]}"[:400])
    return counts, failures


def spilling_kernels(log: str) -> list[str]:
    """The kernels whose registers did not suffice."""
    name, spilling = "", []
    for line in log.splitlines():
        if found := _COMPILING.search(line):
            name = found[1]
        elif (found := _SPILLS.search(line)) and name:
            if found.groups() != ("0", "0"):
                spilling.append(name)
            name = ""  # what follows are device functions
    return spilling


def read_sanitizer(report: Path, junit: Path) -> dict[str, Any]:
    """The verdict on one run: the tool found nothing in this project's kernels, and the program under it ended well.

    After a crash the tool reports no errors either, so pytest's own report must exist, with tests that passed.
    Errors that cannot be attributed count as this project's.
    """
    lines = report.read_text(errors="replace").splitlines() if report.is_file() else []
    kernels = re.compile(rf"\b({'|'.join(own_kernels())})\b")
    blocks = [
        " ".join(part.lstrip("= ") for part in lines[i : i + 4]) for i, line in enumerate(lines) if _FINDING.match(line)
    ]
    ours = [block[:300] for block in blocks if kernels.search(block)]
    summaries = [int(number) for number in _SUMMARY.findall("\n".join(lines))]
    counts, failures = count_junit([junit]) if junit.is_file() else ({}, [])
    problems = [*ours[:KEPT], *failures]
    if not summaries:
        problems.append("the tool printed no summary")
    elif sum(summaries) and not blocks:
        problems.append(f"{sum(summaries)} errors of unknown origin")
    if not any(own["passed"] for own in counts.values()):
        problems.append("no test passed under the tool")
    return {"errors": sum(summaries), "ours": len(ours), "others": len(blocks) - len(ours), "problems": problems}


def own_kernels(root: Path = ROOT) -> list[str]:
    """The names of the kernels in csrc/cuda and pspnet_fast/triton."""
    names: set[str] = set()
    for path in (root / "csrc" / "cuda").rglob("*.cu*"):
        names |= set(_GLOBAL.findall(path.read_text(encoding="utf-8")))
    for path in (root / "pspnet_fast" / "triton").glob("*.py"):
        names |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    return sorted(names)
