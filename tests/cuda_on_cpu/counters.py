"""Counts, without a GPU, what the memory system and the schedulers of one would see of csrc/cuda's kernels.

A library whose kernels report what they access (counting.cpp) runs the calls of counter_cases.py in a process of its
own. Here the counts get the names of kernels and the lines of source that they belong to.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from compiling import HERE, ROOT, Target, build
from counter_cases import Case
from sass import short_name

WHAT = ("global loads", "global stores", "shared loads", "shared stores", "lanes")  # as counting.h's Kind
Key = TypeVar("Key")


class Site(NamedTuple):
    """A line of a kernel, and what it does there; ``source`` is its text, as a number would change with lines above."""

    operator: str
    case: Case
    kernel: str  # with its template arguments
    what: str
    source: str


class Count(NamedTuple):
    """Sums over the requests of warps; of basic blocks ("lanes"), over the times that a warp comes to one."""

    requests: int
    lanes: int
    units: int  # sectors of global memory, wavefronts of shared memory, or lanes
    fewest: int  # that would do


class Bytes(NamedTuple):
    floor: int  # each byte of an argument that is read, and each that is written
    moved: int  # sectors of 32 bytes, each once a block
    requested: int  # sectors, each time that a request has them


class Counted(NamedTuple):
    calls: dict[tuple[str, Case], Bytes]  # by operator
    launches: dict[str, tuple[int, int]]  # threads and dynamic shared memory of a block, by kernel
    sites: list[tuple[Site, Count]]

    def sums(self, key: Callable[[Site], Key | None]) -> dict[Key, Count]:
        """The sums of the sites that have one key, of those that have any."""
        sums: dict[Key, Count] = {}
        for site, count in self.sites:
            if (of := key(site)) is not None:
                sums[of] = Count(*(a + b for a, b in zip(sums.get(of, (0, 0, 0, 0)), count, strict=True)))
        return sums


def count(target: Target, cases: Sequence[str] = ()) -> Counted:
    """Builds the library and runs ``cases``, by default all of them."""
    build([target])
    command = [sys.executable, str(HERE / "counter_cases.py"), str(target.output), *cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"counting ended with exit code {done.returncode}: {done.stderr}")
    records = json.loads(done.stdout)
    counted, places = Counted({}, {}, []), _places(target.output, records)
    for record in records:
        _add(counted, record, places)
    return counted


def _add(counted: Counted, record: dict[str, Any], places: dict[str, Place]) -> None:
    operator, case, (moved, *lines) = record["operator"], Case(*record["case"]), record["lines"]
    requested = 0
    for kernel, *words in map(str.split, lines):
        name, place = places[kernel].function, places[words[0]] if len(words) > 2 else None
        numbers = [int(word, 16) for word in words[place is not None :]]
        if place is None:
            counted.launches[name] = numbers[0], numbers[1]
            continue
        what = WHAT[numbers[0]]
        source = place.source(innermost=what == "lanes")
        if source is None and what != "lanes":
            raise RuntimeError(f"{place.function} is not inlined into {name}: its accesses have no line of their own")
        if source is None:
            continue
        counted.sites.append((Site(operator, case, name, what, source), Count(*numbers[1:])))
        requested += 32 * numbers[3] if what.startswith("global") else 0
    counted.calls[operator, case] = Bytes(record["floor"], int(moved), requested)


# ---- Places in the source -------------------------------------------------------------------------------------------


class Place(NamedTuple):
    function: str
    frames: tuple[str, ...]  # file:line, from the innermost inlined call outwards

    def source(self, innermost: bool) -> str | None:
        """The innermost line of csrc/cuda; None for a basic block of the layer itself."""
        frames = self.frames[:1] if innermost else self.frames
        return next((_text_of(frame) for frame in frames if "/include/" not in frame), None)


def _places(library: Path, records: Sequence[dict[str, Any]]) -> dict[str, Place]:
    words = [line.split() for record in records for line in record["lines"][1:]]
    addresses = sorted({address for line in words for address in (line[:1] if len(line) == 3 else line[:2])})
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
