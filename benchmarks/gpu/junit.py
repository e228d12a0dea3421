"""Counts of a pytest run from its JUnit file, by the back end in each test's id."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_BACKEND = re.compile(r"\[(composed-cuda|composed|reference|cpu|triton|cuda)[-\]]")
OTHER = "other"  # tests that ask for no back end
_ABOUT_BACKENDS = ("test_backend",)  # modules whose parameters are names of back ends, on which nothing runs
KEPT = 20  # failures and reasons that are told in full


@dataclass
class Counts:
    """Numbers of tests; an error in a fixture is a failure."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass
class Outcome:
    """A run's counts by back end, its first failures, and why tests were skipped."""

    backends: dict[str, Counts] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_junit(path: Path) -> Outcome:
    """Parse a file that pytest's ``--junitxml`` wrote."""
    outcome = Outcome()
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("name", "")
        module = (case.get("classname") or "").split(".")[-1]
        found = None if module in _ABOUT_BACKENDS else _BACKEND.search(name)
        counts = outcome.backends.setdefault(found[1] if found else OTHER, Counts())
        broken = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if broken:
            counts.failed += 1
            if len(outcome.failures) < KEPT:
                message = (broken[0].get("message") or "").strip().splitlines()
                outcome.failures.append(f"{case.get('classname')}::{name}: {message[0] if message else ''}"[:400])
        elif skipped is not None:
            counts.skipped += 1
            reason = (skipped.get("message") or "no reason given")[:200]
            if reason in outcome.reasons or len(outcome.reasons) < KEPT:
                outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1
        else:
            counts.passed += 1
    return outcome


def added(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """Counts by back end over several runs."""
    total: dict[str, Counts] = {}
    for outcome in outcomes:
        for backend, counts in outcome.backends.items():
            sum_ = total.setdefault(backend, Counts())
            sum_.passed += counts.passed
            sum_.failed += counts.failed
            sum_.skipped += counts.skipped
    return {backend: asdict(counts) for backend, counts in sorted(total.items())}
