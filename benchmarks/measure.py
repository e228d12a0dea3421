"""How everything here is measured: interleaved rounds in one process, and peak memory in fresh ones.

Machines are shared and their clocks move, so a variant is never timed in a block of its own: each round runs every
variant once, and what is quoted is the ratio of medians.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one variant over the rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every variant once a round, after one round that warms up (and compiles)."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):
        for name, run in variants.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if index > 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Timing(
        round(statistics.median(ordered), 2),
        round(ordered[round(0.2 * last)], 2),
        round(ordered[round(0.8 * last)], 2),
        len(ordered),
    )


def peak_bytes(prepare: Callable[[], Callable[[], object]]) -> int:
    """The most memory that ``prepare()()`` held above what ``prepare`` left: GPU allocator, or resident set on a CPU.

    On a CPU call it in a process of its own: the resident set's high-water mark never falls. It is read from
    /proc/self/status, as getrusage's also holds that of the process that started this one.
    """
    run = prepare()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux")


def in_fresh_process(module: str, *arguments: str) -> Any:
    """Run ``python -m module arguments`` and parse the last line it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    """Where and with what a number was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor()


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with the machine they were measured on to ``results/name.json``, in one step."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def as_row(timings: dict[str, Timing], **labels: Any) -> dict[str, Any]:
    """One result row: labels, and each variant's timing."""
    return {**labels, "milliseconds": {name: asdict(timing) for name, timing in timings.items()}}
