"""What the GPU command reads: pytest's reports and compute-sanitizer's."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT

_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_FINDING = re.compile(r"^=+ +(Invalid|Misaligned|Uninitialized|Out-of-range|Error:|Warning:|Race|Potential|Barrier)")
_KERNEL = re.compile(r"(?:__global__[^;{]*?\b|^def )(\w+_kernel)\(", re.M)
# initcheck does not see what cuDNN and cuBLAS write in half precision: on an H100 and an H200 it named only kernels
# that read their results, cuDNN's and PyTorch's own batch normalisation among them. What it says of these is uncertain.
_UNCERTAIN = re.compile(r"Uninitialized.*\b(pyramid_conv_add_kernel|pyramid_levels_kernel|pyramid_conv_fwd_kernel)\b")


def count_junit(path: Path) -> dict[str, int]:
    """Passed, failed (with errors in fixtures) and skipped tests of a pytest run; all 0 where it left no report."""
    suites = list(ElementTree.parse(path).iter("testsuite")) if path.is_file() else []
    tests, errors, failures, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "errors", "failures", "skipped")
    )
    return {"passed": tests - errors - failures - skipped, "failed": errors + failures, "skipped": skipped}


def find_sanitizer() -> str | None:
    """compute-sanitizer of the toolkit, the PATH, the usual folder, or NVIDIA's wheels."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    packed = (str(file) for file in sorted(wheels.glob("**/compute-sanitizer")) if os.access(file, os.X_OK))
    return shutil.which("compute-sanitizer", path=path) or next(packed, None)


def own_kernels() -> list[str]:
    """The names of the kernels in csrc/cuda and pspnet_fast/triton."""
    sources = [*(ROOT / "csrc" / "cuda").rglob("*.cu*"), *(ROOT / "pspnet_fast" / "triton").glob("*.py")]
    return sorted({name for path in sources for name in _KERNEL.findall(path.read_text(encoding="utf-8"))})


def read_sanitizer(report: Path, junit: Path) -> dict[str, Any]:
    """The verdict on one run: the tool found nothing in this project's kernels, and the program under it ended well.

    After a crash the tool reports no errors either, so pytest's own report must exist, with tests that passed.
    Errors that cannot be attributed count as this project's.
    """
    text = report.read_text(errors="replace") if report.is_file() else ""
    lines, kernels = text.splitlines(), re.compile(rf"\b({'|'.join(own_kernels())})\b")
    starts = [index for index, line in enumerate(lines) if _FINDING.match(line)]
    blocks = [" ".join(part.lstrip("= ") for part in lines[index : index + 4]) for index in starts]
    problems = ours = [block[:300] for block in blocks if kernels.search(block) and not _UNCERTAIN.search(block)]
    summaries, counts = [int(number) for number in _SUMMARY.findall(text)], count_junit(junit)
    if not summaries:
        problems = [*ours, "the tool printed no summary"]
    elif sum(summaries) > len(blocks):
        problems = [*ours, f"{sum(summaries) - len(blocks)} errors of unknown origin"]
    if counts["failed"] or not counts["passed"]:
        problems = [*problems, f"tests under the tool: {counts}"]
    return {"errors": sum(summaries), "ours": len(ours), "others": len(blocks) - len(ours), "problems": problems}
