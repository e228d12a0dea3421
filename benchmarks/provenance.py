"""Where and with what a number was measured: machine, versions, commit, digest of the kernels."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from buildtools.sources import csrc_digests
from pspnet_fast.digest import folder_digest

ROOT = Path(__file__).resolve().parent.parent
# What benchmarks and report write: a new result does not change the sources that the next one is measured on.
WRITTEN = ("benchmarks/results", "docs", "README.md")
CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")


def machine() -> dict[str, Any]:
    """What every result file says of its origin."""
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "digest": digests(),
        "date": time.strftime("%Y-%m-%d"),
    }


def gpu_machine() -> dict[str, Any]:
    """:func:`machine`, and what else a GPU's result depends on; values that cannot be had are None."""
    query = f"--query-gpu=driver_version,{','.join(CLOCKS)}"
    lines = _answer("nvidia-smi", query, "--format=csv,noheader").splitlines() if torch.cuda.is_available() else []
    values: Sequence[str | None] = lines[0].split(", ") if lines else []
    driver, *clocks = values if len(values) == 1 + len(CLOCKS) else [None] * (1 + len(CLOCKS))
    return {
        **machine(),
        "processor": cpu_model(),
        "driver": driver,
        "clocks": dict(zip(CLOCKS, clocks, strict=True)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
        "nvcc": nvcc_version(),
    }


def device_name() -> str:
    """The GPU that torch sees, else the CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()


def cpu_model() -> str:
    """The processor's name and its number of cores."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor()


@functools.cache
def commit() -> str:
    """The commit of this tree, "-dirty" if sources were edited; "unknown" where there is no git or no repository."""
    name = _answer("git", "rev-parse", "--short=12", "HEAD")
    if not name:
        return "unknown"
    sources = [".", *(f":(exclude){path}" for path in WRITTEN)]
    return f"{name}-dirty" if _answer("git", "status", "--porcelain", "-uno", "--", *sources) else name


def digests() -> dict[str, str | None]:
    """Digests of the kernels' sources in this tree; they tell more than a commit where a copy has none."""
    return {**csrc_digests(), "triton": folder_digest(ROOT / "pspnet_fast" / "triton")}


def nvcc() -> str | None:
    """The path of nvcc as the build looks for it, or None."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if folder := os.environ.get(variable):
            return shutil.which("nvcc", path=str(Path(folder) / "bin"))
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_version() -> str | None:
    """nvcc's version, such as "13.0.88", or None."""
    path = nvcc()
    found = re.search(r"\bV(\d+\.\d+\.\d+)", _answer(path, "--version")) if path else None
    return found.group(1) if found else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answer(*command: str) -> str:
    """What a command prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
