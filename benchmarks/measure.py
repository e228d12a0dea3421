"""How everything here is measured: interleaved rounds in one process, and peak memory in fresh ones.

Machines are shared and their clocks move, so a variant is never timed in a block of its own: each round runs every
variant once, and what is quoted is the ratio of medians.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import ROOT, machine

RESULTS = Path(__file__).resolve().parent / "results"
MOST_ROUNDS = 100


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


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, Timing]:
    """Median and percentiles of :func:`rounds_in_turn`."""
    return {name: timing(values) for name, values in rounds_in_turn(variants, rounds, device).items()}


def rounds_in_turn(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", seconds: float = 0.0
) -> dict[str, list[float]]:
    """Milliseconds of every variant, once a round, after one round that warms up (and compiles).

    On a CPU by the clock; on a GPU (``device="cuda"``) by events on its stream, behind a flush of the L2 cache.
    ``rounds`` are run at least, and more (``MOST_ROUNDS`` at most) until a variant has had ``seconds`` on average.
    """
    stopwatch = _gpu_milliseconds if device == "cuda" else _clock_milliseconds
    for run in variants.values():
        stopwatch(run)
    times: dict[str, list[float]] = {name: [] for name in variants}
    start, done = time.perf_counter(), 0
    while done < rounds or (done < MOST_ROUNDS and time.perf_counter() - start < seconds * len(variants)):
        for name, run in variants.items():
            times[name].append(stopwatch(run))
        done += 1
    return times


def _clock_milliseconds(run: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def _gpu_milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The flush also keeps the GPU busy while the first kernels are being queued.
    _flush_buffer().zero_()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


@functools.cache
def _flush_buffer() -> torch.Tensor:
    """Several times the L2 cache: after writing it, nothing of the inputs is left there."""
    size = 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(max(size, 256 << 20), dtype=torch.uint8, device="cuda")


def timing(milliseconds: list[float]) -> Timing:
    """Median, 20th and 80th percentile, to four significant digits."""
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    values = (statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)])
    median, p20, p80 = (float(f"{value:.4g}") for value in values)
    return Timing(median, p20, p80, len(ordered))


def peak_bytes(prepare: Callable[[], Callable[[], object]], device: str | None = None) -> int:
    """The most that a call of ``prepare()`` holds above what was there before it: GPU allocator, or resident set.

    The call is made once before, so that compiling, loading of libraries and what they keep for good do not count.
    ``device`` ("cpu" or "cuda") is a GPU by default, where torch sees one. On a CPU call it in a process of its own,
    where no other thread allocates. The mark is read from /proc/self/status, as getrusage's also holds that of the
    process that started this one.
    """
    run = prepare()
    cold = status_bytes("VmRSS")
    run()
    if torch.cuda.is_available() if device is None else device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew from what is resident
    except OSError:  # a sandbox without it: the first call, and what it keeps, count too
        return status_bytes("VmHWM") - cold
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def _return_free_memory() -> None:
    """Have the C library give back what the warm-up freed, or a second call would take it without a trace."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's alone
        trim(0)


def status_bytes(field: str) -> int:
    """A field of /proc/self/status that is given in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux")


def in_fresh_process(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """Run ``python -m module arguments`` and parse the last line it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_json(path: Path, content: object) -> Path:
    """Write ``content``, replacing an older file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with the machine they were measured on to ``results/name.json``."""
    return write_json(RESULTS / f"{name}.json", {"machine": machine(), "rows": rows})
