"""How everything here is measured: interleaved rounds in one process, and peak memory in new ones.

Machines are shared and their clocks move, so a variant is never timed in a block of its own: each round runs every
variant once, and what is quoted is the ratio of medians.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from benchmarks.case import Rates, rounded
from pspnet_fast.machine import status_bytes

T = TypeVar("T")
CGROUP = Path("/sys/fs/cgroup")
MOST_ROUNDS = 100
# The C library then keeps what is freed and never maps it anew: pages are faulted in once, and not in every call.
NO_PAGE_FAULTS = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
    ":glibc.malloc.mmap_max=0"
}


# ---- time ------------------------------------------------------------------------------------------------------------


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of every variant, once a round, after one round that warms up (and compiles).

    On a CPU by ``clock``; on a GPU (``device="cuda"``) by events on its stream, behind a flush of the L2 cache.
    ``rounds`` are run at least, and more (``MOST_ROUNDS`` at most) until a variant has had ``seconds`` on average.
    """
    stopwatch = _gpu_milliseconds if device == "cuda" else functools.partial(_clock_milliseconds, clock=clock)
    for run in variants.values():
        stopwatch(run)
    times: dict[str, list[float]] = {name: [] for name in variants}
    start, done = time.perf_counter(), 0
    while done < rounds or (done < MOST_ROUNDS and time.perf_counter() - start < seconds * len(variants)):
        for name, run in variants.items():
            times[name].append(stopwatch(run))
        done += 1
    return times


def _clock_milliseconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return (clock() - start) * 1e3


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


def timing(milliseconds: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, to four significant digits, and the number of rounds."""
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    numbers = statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return {**dict(zip(("median", "p20", "p80"), map(rounded, numbers), strict=True)), "rounds": len(ordered)}


def timings(milliseconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """:func:`timing` of every variant."""
    return {name: timing(values) for name, values in milliseconds.items()}


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(prepare: Callable[[], Callable[[], object]], device: str, *, warm: bool = True) -> int:
    """The most that a call of ``prepare()`` holds above what was there before it: GPU allocator, or resident set.

    With ``warm`` the call is made once before, so that compiling, loading of libraries and what they keep for good do
    not count. On a CPU call this in a new process, where no other thread allocates.
    """
    run = prepare()
    cold = status_bytes("VmRSS")
    if warm:
        run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc: return what the warm-up freed, or the second call would reuse it without a trace
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew from what is resident
    except OSError:  # a sandbox without it: the first call, and what it keeps, count too
        return status_bytes("VmHWM") - cold
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def tensor_bytes(prepare: Callable[[], Callable[[], object]]) -> int:
    """The most bytes of tensors that a call of ``prepare()`` holds on top of its inputs and modules.

    They are counted on tensors without memory, and nothing is computed. What an operator allocates inside, and how an
    allocator rounds, does not count.
    """
    run, tracker = prepare(), MemTracker()
    with FakeTensorMode(allow_non_fake_inputs=True), tracker:
        run()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return int(peak["Total"]) - sum(int(peak[kind]) for kind in (_MemRefType.PARAM, _MemRefType.BUFFER))


def available_bytes(device: str) -> int:
    """What can still be allocated: of the GPU's memory, or of the machine's and its container's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min(available, _container_bytes(CGROUP) or available)


def _container_bytes(group: Path) -> int | None:
    """What a container's limit leaves (cgroup v2), the cache that it would free included; None without a limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))


# ---- processes -------------------------------------------------------------------------------------------------------


def in_new_process(
    function: Callable[..., T], *arguments: Any, environment: Mapping[str, str] | None = None, preload: str = ""
) -> T:
    """Call ``function`` in a process of its own.

    It is forked from a server that has imported ``preload`` and run nothing; with an ``environment``, which a program
    reads as it starts, it is started from nothing.
    """
    context = multiprocessing.get_context("spawn" if environment else "forkserver")
    if not environment and preload:
        context.set_forkserver_preload([preload, "torch._inductor.compile_fx"])
    with patch.dict(os.environ, environment or {}), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Run torch's operators and this package's on ``count`` threads; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- rates -----------------------------------------------------------------------------------------------------------


def measure_rates(
    device: str, *, quick: bool = False, rounds: int = 9, clock: Callable[[], float] = time.perf_counter
) -> Rates:
    """Copy 256 MB (2 GB on a GPU), and do arithmetic both ways that torch has. ``quick``: a fiftieth of that.

    A dtype's rate is the better of a large matrix product and a 3×3 convolution: different libraries compute them, and
    on CPUs that one of them does not know it reaches half of what the machine can do.
    """
    elements = (1 << 29 if device == "cuda" else 1 << 26) // (50 if quick else 1)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    work: dict[str, float] = {"copy": 2 * source.nbytes}
    for dtype in (torch.float32, torch.bfloat16):
        for name, (run, flops) in _arithmetic(dtype, device, quick=quick).items():
            runs[name], work[name] = run, flops

    # The 20th percentile: another process's disturbance must not lower what the machine can do.
    times = timings(interleaved(runs, rounds, device, clock=clock))
    rates = {name: round(work[name] / times[name]["p20"] / 1e6, 1) for name in runs}
    best = {dtype: max(rate for name, rate in rates.items() if dtype in name) for dtype in ("float32", "bfloat16")}
    return {"copy": rates["copy"], **best}


def _arithmetic(dtype: torch.dtype, device: str, *, quick: bool) -> dict[str, tuple[Callable[[], object], int]]:
    """A product of square matrices and a convolution, each with its FLOP."""
    gpu = device == "cuda"
    size = (8192 if gpu else 1536) // (4 if quick else 1)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    batch, channels, side = (16 if gpu else 1, 512, 64) if not quick else (1, 128, 32)
    x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    convolution = functools.partial(F.conv2d, x, weight, padding=1)
    return {
        f"{dtype} product": (functools.partial(torch.matmul, a, b), 2 * size**3),
        f"{dtype} convolution": (convolution, 2 * batch * side**2 * 9 * channels**2),
    }
