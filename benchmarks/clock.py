"""Rounds that were timed in turn, handed to pytest-benchmark as if it had timed them (the reason is in conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

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
    """Enter a peer's rounds, and the row of its case; nothing under ``--benchmark-disable``."""
    milliseconds = outcome.rounds.get(peer, [])
    if milliseconds:
        CLOCK.load([value / 1e3 for value in milliseconds])
        benchmark.extra_info.update(peer=peer, row=outcome.row)
    benchmark.pedantic(lambda: None, rounds=len(milliseconds) or 1, iterations=1)
