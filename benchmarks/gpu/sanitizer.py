"""Section sanitizer: compute-sanitizer's memcheck, racecheck and initcheck over each kernel at small sizes.

Two verdicts count: that the tool found nothing in this project's kernels, and that the program under it came to its
end; after a crash the tool reports no errors either.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.sanitizer_cases import DONE
from benchmarks.gpu.section import Findings
from benchmarks.provenance import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck")
BACKENDS = ("cuda", "triton")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_HEAD = re.compile(r"^=+ +(Invalid|Misaligned|Uninitialized|Out-of-range|Error:|Warning:|Race|Potential|Barrier).*")
_GLOBAL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")
KEPT = 10


@dataclass
class Report:
    """What one run of a tool gave."""

    errors: int | None  # as the tool counts; None: it printed no summary
    finished: bool  # the program under it
    ours: list[str] = field(default_factory=list)  # findings in this project's kernels
    others: list[str] = field(default_factory=list)  # in PyTorch's and its libraries'

    @property
    def clean(self) -> bool:
        """Nothing in this project's kernels. Errors that could not be attributed count as this project's."""
        attributed = len(self.ours) + len(self.others)
        return self.finished and self.errors is not None and not self.ours and not (self.errors and not attributed)


def find_sanitizer() -> str | None:
    """compute-sanitizer of the toolkit, the PATH, the usual folder, or NVIDIA's wheels."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    if found := shutil.which("compute-sanitizer", path=path):
        return found
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    return next((str(file) for file in sorted(wheels.glob("**/compute-sanitizer")) if os.access(file, os.X_OK)), None)


def read_report(text: str, kernels: frozenset[str]) -> Report:
    """Parse what a tool and the program under it printed.

    Args:
        text: the output of both.
        kernels: the names of this project's kernels.
    """
    summaries = _SUMMARY.findall(text)
    report = Report(errors=sum(map(int, summaries)) if summaries else None, finished=DONE in text.splitlines())
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if not _HEAD.match(line):
            continue
        block = " ".join(part.lstrip("= ") for part in lines[index : index + 4])
        owned = any(re.search(rf"\b{name}\b", block) for name in kernels)
        target = report.ours if owned else report.others
        target.append(block[:300])
    return report


def own_kernels(root: Path = ROOT) -> frozenset[str]:
    """The names of the kernels in csrc/cuda and pspnet_fast/triton."""
    names: set[str] = set()
    for path in (root / "csrc" / "cuda").rglob("*.cu*"):
        names |= set(_GLOBAL.findall(path.read_text(encoding="utf-8")))
    for path in (root / "pspnet_fast" / "triton").glob("*.py"):
        names |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(names)


def command_of(program: str, tool: str, backend: str) -> list[str]:
    """One run. API errors are not reported: libraries probe for features by failing calls."""
    options = ["--tool", tool, "--report-api-errors", "no", "--error-exitcode", "3", "--print-limit", "50"]
    options += ["--target-processes", "application-only"]  # not the compilers that Triton starts
    return [program, *options, sys.executable, "-m", "benchmarks.gpu.sanitizer_cases", backend]


def run(findings: Findings) -> None:
    """Every tool on every back end, as far as the time goes."""
    if findings.options.device == "cpu":
        print("compute-sanitizer needs a GPU: nothing to do in a dry run")
        findings.add(runs={}, skipped="compute-sanitizer needs a GPU")
        return
    program = find_sanitizer()
    if program is None:
        findings.problem("compute-sanitizer is neither in CUDA_HOME, on the PATH nor in NVIDIA's wheels")
        return

    kernels = own_kernels()
    runs: dict[str, Any] = {}
    for backend in BACKENDS:
        for tool in TOOLS:
            if findings.seconds_left < 30:
                findings.problem(f"no time was left for {tool} on {backend}")
                continue
            text = _output(command_of(program, tool, backend), findings.seconds_left)
            report = read_report(text, kernels)
            runs[f"{tool} {backend}"] = {**vars(report), "ours": report.ours[:KEPT], "others": report.others[:KEPT]}
            findings.add(program=program, runs=runs)
            print(f"{tool} {backend}: {report.errors} errors, {len(report.ours)} in this project's kernels", flush=True)
            if not report.clean:
                told = report.ours or report.others or text.splitlines()[-1:]
                findings.problem(f"{tool} on {backend}: {'' if report.finished else 'it did not finish; '}{told[:1]}")


def _output(command: list[str], seconds: float) -> str:
    print("+", *command, flush=True)
    # Without the caching allocator each tensor is an allocation, whose bounds the tool knows.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=seconds, check=False,
        )  # fmt: skip
        text = done.stdout
    except subprocess.TimeoutExpired as error:
        told = error.stdout or b""
        text = (told.decode(errors="replace") if isinstance(told, bytes) else told) + "\nended for want of time"
    print(text[-4000:], flush=True)
    return text
