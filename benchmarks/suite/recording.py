"""Rounds that were run in turn, handed to pytest-benchmark as if it had timed them.

pytest-benchmark times one test after the other. On a machine that others use, whose clock moves, peers timed minutes
apart are not compared with each other but with two states of the machine. So all peers of a group are timed here, in
turn, round after round (:func:`benchmarks.measure.rounds_in_turn`; on a GPU by events, behind a flush of the L2 cache),
and each test then lets pytest-benchmark "time" its peer with a clock that replays the rounds of that peer. Statistics,
tables, storage, ``--benchmark-json`` and ``--benchmark-compare`` are pytest-benchmark's own and hold real rounds; what
it has no column for (percentiles, ratios, memory, floor) is in ``extra_info``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from benchmarks.rows import Row
from benchmarks.suite.session import Outcome


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture."""

    extra_info: dict[str, Any]
    enabled: bool

    def pedantic(self, target: Any, *, rounds: int, iterations: int) -> Any: ...


class ReplayClock:
    """A timer whose successive readings are the starts and ends of rounds that were timed before."""

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, seconds: Sequence[float]) -> None:
        """Replay these durations: a reading of 0 as each round starts, and its duration as it ends."""
        self._readings = chain.from_iterable((0.0, duration) for duration in seconds)

    def __call__(self) -> float:
        return next(self._readings)


CLOCK = ReplayClock()


def replayed_clock() -> float:
    """The timer of every benchmark here (a function, as pytest-benchmark tells a timer by its name)."""
    return CLOCK()


def record(benchmark: Benchmark, outcome: Outcome, peer: str) -> None:
    """Enter a peer's rounds, and what else its row says of it; nothing under ``--benchmark-disable``."""
    milliseconds = outcome.rounds.get(peer, [])
    if milliseconds:
        CLOCK.load([value / 1e3 for value in milliseconds])
        benchmark.extra_info.update(extra_info(outcome.row, peer))
    benchmark.pedantic(lambda: None, rounds=len(milliseconds) or 1, iterations=1)


def extra_info(row: Row, peer: str) -> dict[str, Any]:
    """All that a row says of a peer: every number of its line in the table, and what it comes from."""
    time = row["milliseconds"][peer]
    names = ("operator", "configuration", "shape", "dtype", "layout", "direction", "arrangement", "device")
    information = {
        **{name: row[name] for name in names},
        "peer": peer,
        "milliseconds": time,
        "ours": row["ours"],
        "times_ours": row["ratio"].get(peer),
        # Of this peer's median to each one's.
        "ratio": {name: round(time["median"] / other["median"], 4) for name, other in row["milliseconds"].items()},
        "peak_bytes": row.get("peak_bytes", {}).get(peer),
        "floor": row["floor"],
        "floor_reached": row["floor_reached"].get(peer),
        "ceilings": row["ceilings"],
        "difference": row["difference"][peer],
        "tolerance": row["tolerance"],
    }
    if graph := row.get("graph_milliseconds", {}).get(peer):
        information["graph_milliseconds"] = graph
    kept = row.get("without_page_faults", {})
    if peer in kept.get("milliseconds", {}):
        information["without_page_faults"] = {name: values.get(peer) for name, values in kept.items()}
    return information
