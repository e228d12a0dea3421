"""Counts, without a GPU, what the memory system and the schedulers of one would see of csrc/cuda's kernels.

A library whose kernels report what they access (counting.cpp) runs the calls of counter_cases.py in a process of its
own. Here the counts are brought together by kernel, and by line of source.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from compiling import HERE, ROOT, Target, build
from sass import short_name

LANES = 32


@dataclass
class Count:
    """Sums over the requests of warps; of basic blocks, over the times that a warp comes to one."""

    requests: int = 0
    lanes: int = 0
    units: int = 0  # sectors of global memory, or wavefronts of shared memory
    fewest: int = 0  # that would do

    def add(self, other: Count) -> None:
        self.requests += other.requests
        self.lanes += other.lanes
        self.units += other.units
        self.fewest += other.fewest


class Line(NamedTuple):
    """A line of a kernel, and what it does there: "loads" or "stores" global or shared memory, or "lanes"."""

    kernel: str
    what: str
    source: str  # file and text: a number would change with every line above


class Case(NamedTuple):
    layout: str
    dtype: str
    side: int


@dataclass
class Launch:
    """What a kernel does in all launches of a case. ``name`` has its template arguments."""

    name: str
    threads: int = 0
    shared_bytes: int = 0  # dynamic
    loads_stores: Count = field(default_factory=Count)  # of global memory
    shared: Count = field(default_factory=Count)
    passes: Count = field(default_factory=Count)


@dataclass
class Call:
    operator: str
    case: Case
    floor: int  # bytes: each of an argument that is read, and each that is written
    moved: int  # bytes: sectors of 32, each once a block


@dataclass
class Counted:
    calls: list[Call] = field(default_factory=list)
    launches: dict[tuple[str, Case], Launch] = field(default_factory=dict)
    lines: dict[Line, Count] = field(default_factory=dict)


def count(target: Target, cases: Sequence[str] = ()) -> Counted:
    """Builds the library and runs ``cases``, by default all of them."""
    build([target])
    command = [sys.executable, str(HERE / "counter_cases.py"), str(target.output), *cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"counting ended with exit code {done.returncode}: {done.stderr}")
    records = json.loads(done.stdout)
    counted, places = Counted(), _places(target.output, records)
    for record in records:
        _add(counted, record, places)
    return counted


def _add(counted: Counted, record: dict[str, Any], places: dict[str, Place]) -> None:
    case = Case(record["layout"], record["dtype"], record["side"])
    first, *lines = record["lines"]
    counted.calls.append(Call(record["operator"], case, record["floor"], int(first.split()[1])))
    for line in lines:
        tag, kernel, *rest = line.split()
        name = places[kernel].function
        launch = counted.launches.setdefault((name, case), Launch(name))
        if tag == "launch":
            launch.threads, launch.shared_bytes = map(int, rest)
            continue
        place, *numbers = rest
        source = places[place].source(tag == "passes")
        if source is None:
            continue
        if tag == "passes":
            warps, lanes = map(int, numbers)
            into, what, one = launch.passes, "lanes", Count(warps, lanes, LANES * warps, lanes)
        else:
            shared, write, *sums = map(int, numbers)
            into, one = (launch.shared if shared else launch.loads_stores), Count(*sums)
            what = f"{'shared' if shared else 'global'} {'stores' if write else 'loads'}"
        into.add(one)
        counted.lines.setdefault(Line(name.partition("<")[0], what, source), Count()).add(one)


# ---- Places in the source -------------------------------------------------------------------------------------------


class Place(NamedTuple):
    function: str
    frames: tuple[str, ...]  # file:line, from the innermost inlined call outwards

    def source(self, innermost: bool) -> str | None:
        """The innermost line of csrc/cuda; None for what the layer does itself: its tensor cores, and its waiting."""
        if any("/mma.h:" in frame for frame in self.frames):
            return None
        frames = self.frames[:1] if innermost else self.frames
        return next((_text_of(frame) for frame in frames if "/include/" not in frame), None)


def _places(library: Path, records: Sequence[dict[str, Any]]) -> dict[str, Place]:
    addresses = sorted({a for record in records for line in record["lines"][1:] for a in line.split()[1:3]})
    command = ["addr2line", "-a", "-f", "-i", "-C", "-e", str(library)]
    done = subprocess.run(command, input="\n".join(addresses), capture_output=True, text=True, check=True)
    places = {}
    for part in re.split(r"^0x0*", done.stdout, flags=re.MULTILINE)[1:]:
        address, function, *frames = part.splitlines()
        places[address] = Place(short_name(function), tuple(frame.partition(" (")[0] for frame in frames[::2]))
    return places


@functools.cache
def _text_of(frame: str) -> str:
    path, _, number = frame.rpartition(":")
    lines = Path(path).read_text().splitlines()
    return f"{Path(path).name}: {lines[int(number) - 1].strip()}"
