"""Rounds that were timed in turn, handed to pytest-benchmark as if it had timed them (the reason is in conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from benchmarks.results import Row
from benchmarks.session import Outcome


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
    """The timer of every benchmark here (a function, as pytest-benchmark shows a timer by its name)."""
    return CLOCK()


def record(benchmark: Benchmark, outcome: Outcome, peer: str) -> None:
    """Enter a peer's rounds, and what else its row says of it; nothing under ``--benchmark-disable``."""
    milliseconds = outcome.rounds.get(peer, [])
    if milliseconds:
        CLOCK.load([value / 1e3 for value in milliseconds])
        benchmark.extra_info.update(extra_info(outcome.row, peer))
    benchmark.pedantic(lambda: None, rounds=len(milliseconds) or 1, iterations=1)


def extra_info(row: Row, peer: str) -> dict[str, Any]:
    """All that a row says of a peer: what holds for the whole row, and the peer's entry of what is told by peer."""
    time = row["milliseconds"][peer]
    per_peer = {name: value for name, value in row.items() if isinstance(value, dict) and peer in value}
    whole = {name: value for name, value in row.items() if not isinstance(value, dict)}
    return {
        **whole,
        **{name: value[peer] for name, value in per_peer.items()},
        "peer": peer,
        "times_ours": row["ratio"].get(peer),
        # Of this peer's median to each one's.
        "ratio": {name: round(time["median"] / other["median"], 4) for name, other in row["milliseconds"].items()},
        "floor": row["floor"],
        "rates": row["rates"],
        "without_page_faults": {name: v.get(peer) for name, v in row.get("without_page_faults", {}).items()},
    }
