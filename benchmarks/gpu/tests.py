"""Section tests: operators and network over every back end of this machine, small and at real sizes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.junit import Outcome, added, read_junit
from benchmarks.gpu.section import Findings
from benchmarks.provenance import ROOT

EXPECTED = {"cuda": "cpu,triton,cuda", "cpu": "cpu"}
WORKERS = 8  # pytest processes at once on a GPU, where pytest-xdist is installed; each has a CUDA context


@dataclass(frozen=True)
class Run:
    """One call of pytest."""

    name: str
    arguments: tuple[str, ...]
    parallel: bool = False


def runs_of(device: str, *, quick: bool) -> list[Run]:
    """Real sizes first: they are what no other machine runs."""
    real = Run("real sizes", ("tests/gpu",))
    if device == "cpu" or quick:
        return [real, Run("operators", ("tests/ops/test_upsample_argmax.py", "tests/ops/test_backend.py"))]
    return [real, Run("operators and network", ("tests/ops", "tests/nn"), parallel=True)]


def run(findings: Findings) -> None:
    """Each run's outcome, and the sum by back end."""
    options = findings.options
    outcomes: dict[str, Outcome] = {}
    for each in runs_of(options.device, quick=options.quick):
        outcome = run_pytest(each, options.device, findings)
        if outcome is not None:
            outcomes[each.name] = outcome
        findings.add(
            backends=added(list(outcomes.values())),
            runs={name: outcome.as_dict() for name, outcome in outcomes.items()},
        )
    if options.device == "cuda":
        for backend in ("cuda", "triton"):
            if not any(outcome.backends.get(backend) for outcome in outcomes.values()):
                findings.problem(f"no test ran on the back end {backend}")


def run_pytest(run: Run, device: str, findings: Findings) -> Outcome | None:
    """Call pytest; None where it left no result."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *run.arguments, "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={junit}", "--tb=short"]
        if run.parallel and device == "cuda" and importlib.util.find_spec("xdist"):
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist=worksteal"]
        environment = {**os.environ, "PSPNET_FAST_EXPECT_BACKENDS": EXPECTED[device]}
        print("+", *command[1:], flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if not junit.is_file():
            findings.problem(f"{run.name}: pytest ended with exit code {code} and no result")
            return None
        outcome = read_junit(junit)
    failed = sum(counts.failed for counts in outcome.backends.values())
    if failed or code != 0:
        first = f", the first is {outcome.failures[0]}" if outcome.failures else ""
        findings.problem(f"{run.name}: {failed} tests failed (pytest's exit code {code}){first}")
    return outcome
