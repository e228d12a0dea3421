"""How time and memory grow with classes, batch, size and threads, against stock eager.

    python -m benchmarks.scaling                              all axes (about 10 minutes on two cores)
    python -m benchmarks.scaling --axes classes,threads       some of them
    python -m benchmarks.scaling --resume                     only what the results do not have yet
    python -m benchmarks.scaling --quick                      tiny shapes, in two minutes; nothing is saved

One file an axis, ``results/scaling_{cpu,gpu}_AXIS.json``, written anew with each point. A variant that needs more
memory than there is gets no time but the reason, in ``skipped``.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import cross_entropy, pyramid
from benchmarks.case import EAGER, OURS, Case, is_ours
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.measure import in_fresh_process, peak_bytes
from benchmarks.memory import available_bytes
from benchmarks.provenance import device_name
from benchmarks.rows import Row, measure_all
from benchmarks.store import ResultFile
from benchmarks.table import row_text

MODULE = "benchmarks.scaling"
AXES = ("classes", "batch", "size", "threads")
OPERATORS = ("dual_cross_entropy", "pyramid_pool", "psp_head")
PEERS = (EAGER, OURS)
VALUES = {
    "classes": (2, 7, 19, 60, 150, 400, 1000),
    "batch": (1, 2, 4, 8, 16, 32),
    "size": (257, 353, 473, 713, 1025),
}
QUICK_VALUES = {"classes": (2, 7), "batch": (1, 2), "size": (33, 49)}
# What a call holds, inputs included, in float32 tensors of one head's full-resolution logits or of the pooled map:
# what was measured at middle sizes, rounded up. It decides what is not even tried.
HOLDS = {
    "dual_cross_entropy": {"eager": 5, "ours": 1},
    "pyramid_pool": {"eager": 5, "ours": 4},
    "psp_head": {"eager": 16, "ours": 8},
}
SECONDS = 1.0  # of each variant at least: what takes milliseconds gets as many rounds as even out a busy moment


@dataclass(frozen=True)
class Shape:
    """Crops of ``size``² pixels; the losses get ``classes`` and the pyramid ``channels`` on an eighth of the size."""

    device: str
    batch: int
    size: int
    classes: int
    channels: int
    dtype: torch.dtype
    layout: str


@dataclass(frozen=True)
class Point:
    """An operator at one value of an axis, everything else as in the middle."""

    axis: str
    value: int
    operator: str
    shape: Shape
    threads: int

    @property
    def id(self) -> str:
        return f"{self.operator}/{self.axis}/{self.value}"

    @property
    def case(self) -> Case:
        """The operator's case, with eager and this package alone."""
        s = self.shape
        low = (s.size - 1) // 8 + 1
        maps = (s.batch, s.channels, low, low)
        if self.operator == "dual_cross_entropy":
            sizes = ((low, low), (s.size, s.size))
            case = cross_entropy.dual(s.batch, s.classes, *sizes, s.device, dtype=s.dtype, layout=s.layout)
        elif self.operator == "pyramid_pool":
            case = pyramid.pool(maps, s.layout, s.device, dtype=s.dtype, backward=True)
        else:
            case = pyramid.head(maps, s.layout, s.device, dtype=s.dtype)
        return replace(case, peers=PEERS, parts=(), page_faults=False, graph=False)

    def obstacle(self, peer: str, available: float) -> str | None:
        """Why a peer is not even tried with so many bytes; None if nothing speaks against it."""
        if self.operator == "psp_head" and self.shape.batch == 1:
            return "batch normalisation over the 1x1 level cannot train on one image"
        needed = self.needed_bytes(peer)
        if needed <= available:
            return None
        return f"needs about {needed / 1e9:.3g} GB, and {available / 1e9:.3g} GB are available"

    def needed_bytes(self, peer: str) -> int:
        """About what a call of a peer takes."""
        s = self.shape
        low = (s.size - 1) // 8 + 1
        one = s.classes * s.size**2 if self.operator == "dual_cross_entropy" else s.channels * low**2
        return 4 * s.batch * one * HOLDS[self.operator]["ours" if is_ours(peer) else "eager"]


def middle(device: str, *, quick: bool) -> Shape:
    """The shape that all axes run through. On a CPU the pyramid has PSPNet18's 512 channels, as 2048 take minutes."""
    if quick:
        return Shape(device, 2, 33, 5, 16, torch.float32, "NCHW")
    if device == "cpu":
        return Shape(device, 2, 473, 19, 512, torch.float32, "NCHW")
    return Shape(device, 8, 473, 150, 2048, torch.bfloat16, "channels_last")


def points(device: str, axis: str, *, quick: bool, threads: int) -> list[Point]:
    """An axis's points, the cheap ones first. Only the losses know classes; a GPU has no threads.

    Args:
        threads: how many torch uses; the last value of the axis of that name.
    """
    base = middle(device, quick=quick)
    if axis == "threads":
        counts = [1 << i for i in range(threads.bit_length())] if device == "cpu" else []
        return [Point(axis, count, operator, base, count) for operator in OPERATORS for count in counts]
    values = (QUICK_VALUES if quick else VALUES)[axis]
    operators = OPERATORS[:1] if axis == "classes" else OPERATORS
    return [
        Point(axis, value, operator, replace(base, **{axis: value}), threads)
        for operator in operators
        for value in values
    ]


def result_name(device: str, axis: str) -> str:
    """The file in results/ without its suffix."""
    return f"scaling_{'gpu' if device == 'cuda' else 'cpu'}_{axis}"


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Run torch's operators and this package's on ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def ceilings(device: str, threads: int, quick: bool) -> Ceilings:
    """What this many threads can do at best."""
    with on_threads(threads):
        return measure_ceilings(device, quick=quick, rounds=3 if quick else 9)


def measure(point: Point, options: argparse.Namespace) -> Row:
    """A point's row: times interleaved in this process; on a CPU, peak memory in one for each variant."""
    available = options.memory or available_bytes(options.device)
    skipped = {peer: reason for peer in PEERS if (reason := point.obstacle(peer, available)) is not None}
    case = replace(point.case, peers=tuple(peer for peer in PEERS if peer not in skipped))
    labels = {"axis": point.axis, "value": point.value, "threads": point.threads, "skipped": skipped}
    if not case.peers:
        return {**labels, "operator": case.operator, **case.labels, "milliseconds": {}, "ratio": {}, "failures": {}}
    with on_threads(point.threads):
        best, seconds = ceilings(options.device, point.threads, options.quick), 0.0 if options.quick else SECONDS
        (row,) = measure_all([case], best, options.rounds, seconds)
    row = {**labels, **row}
    if options.device == "cpu":
        add_peaks(row, point, options)
    return row


def add_peaks(row: Row, point: Point, options: argparse.Namespace) -> None:
    """Peak memory of the variants that were timed; their processes run side by side, as nothing is timed in them."""
    flags = ["--device", options.device, *(["--quick"] if options.quick else [])]

    def peak(peer: str) -> Any:
        return in_fresh_process(MODULE, "--peak", point.id, "--peer", peer, *flags)

    row["peak_bytes"] = {}
    with ThreadPoolExecutor(len(PEERS)) as pool:
        futures = {peer: pool.submit(peak, peer) for peer in row.get("milliseconds", {})}
    for peer, future in futures.items():
        try:
            row["peak_bytes"][peer] = future.result()
        except subprocess.CalledProcessError as error:  # out of memory, most likely
            row["failures"][f"{peer}, memory"] = f"its process ended with exit code {error.returncode}"


def peak_of(options: argparse.Namespace) -> int:
    """Bytes that a variant's call takes at a point; for a process of its own."""
    axis = options.peak.split("/")[1]
    candidates = points(options.device, axis, quick=options.quick, threads=torch.get_num_threads())
    (point,) = (point for point in candidates if point.id == options.peak)
    with on_threads(point.threads):
        return peak_bytes(lambda: point.case.build(options.peer), options.device)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", type=lambda text: text.split(","), default=list(AXES), help=f"of {','.join(AXES)}")
    parser.add_argument("--rounds", type=int, help="at least, instead of 5; 20 on a GPU")
    parser.add_argument("--memory", type=lambda text: float(text) * 1e9, help="GB that may be used, instead of all")
    parser.add_argument("--resume", action="store_true", help="keep this machine's rows of the same sources")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it work?")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("--peak", "--peer"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := [axis for axis in options.axes if axis not in AXES]:
        parser.error(f"--axes: no axis {', '.join(unknown)}; choose from {', '.join(AXES)}")
    options.rounds = options.rounds or (5 if options.device == "cpu" else 20)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.peak:
        print(json.dumps(peak_of(options)))
        return

    print(f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    wrong = []
    for axis in options.axes:
        name = None if options.no_save or options.quick else result_name(options.device, axis)
        file = ResultFile(name, lambda row: (row["operator"], row["value"]), resume=options.resume)
        todo = points(options.device, axis, quick=options.quick, threads=torch.get_num_threads())
        for index, point in enumerate(todo, start=1):
            if (point.operator, point.value) in file:
                continue
            row = measure(point, options)
            file.add(row)
            print(f"\n{axis} = {point.value} ({index} of {len(todo)}){row_text(row)}", flush=True)
            for peer, reason in row["skipped"].items():
                print(f"  {peer:<22} skipped: {reason}", flush=True)
        wrong += [f"{axis}: {key}" for key in file.wrong()]
    if wrong:
        sys.exit(f"wrong results or errors in {', '.join(wrong)}")


if __name__ == "__main__":
    main()
