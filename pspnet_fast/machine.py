"""The machine and the sources that a number was measured with, and the memory that this process takes."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent  # of the source tree; of site-packages in an installed package


def describe_machine(device: torch.device | str | None = None) -> dict[str, Any]:
    """The device that computes, its threads, and the versions of Python and torch."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def device_name(device: torch.device | str | None = None) -> str:
    """The name of a device; by default of the GPU that torch sees, else of the CPU."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else torch.device(device).type
    return torch.cuda.get_device_name(device) if kind == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's name and its number of cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {os.cpu_count()} cores"


def git_commit(root: Path = ROOT, exclude: Sequence[str] = ()) -> str | None:
    """The commit of the source tree ``root``, with "-dirty" if tracked files other than ``exclude`` were changed.

    ``None`` where ``root`` is no working tree of git, as in an installed package.
    """
    if not (root / ".git").exists():
        return None
    commit = output_of("git", "-C", str(root), "rev-parse", "HEAD")
    paths = [".", *(f":(exclude){path}" for path in exclude)]
    changed = output_of("git", "-C", str(root), "status", "--porcelain", "-uno", "--", *paths)
    return f"{commit}-dirty" if commit and changed else commit or None


def output_of(*command: str) -> str:
    """What a command prints, stripped; empty where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch allocated on a GPU, or the most that this process occupied on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if Path("/proc/self/status").is_file():  # Linux, where getrusage also counts the process that started this one
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def status_bytes(field: str) -> int:
    """A field of /proc/self/status that is given in kB, such as VmRSS (resident set) or VmHWM (its peak)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux")
