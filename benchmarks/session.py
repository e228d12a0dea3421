"""Measures the cases of a run of pytest, each once and all its peers together, when the first of them is tested."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.case import Call, Case, Rates, Results, difference, rounded
from benchmarks.peers import OPTIMIZED_COMPILED, OURS_COMPILED, is_ours, package_versions
from benchmarks.results import ResultFile, Row


@dataclass
class Outcome:
    """The result of a case: its row, and the milliseconds of every round of every peer that was timed."""

    row: Row
    rounds: dict[str, list[float]] = field(default_factory=dict)


def clock_of(case: Case) -> Callable[[], float]:
    """What times are read from: a floor is in the same time as what is compared with it."""
    return time.process_time if case.processor_time else time.perf_counter


@dataclass(eq=False)
class Session:
    """How a run measures, and what it found.

    Attributes:
        device: "cpu" or "cuda".
        wanted: the selected peers of each case, by its id.
        rounds, seconds: at least so many rounds, and more until a peer has had so many seconds on average.
        quick: whether the machine's rates are measured quickly.
        save: the folder of the result files, where rows that were timed are kept.
        outcomes: of the cases that were measured, by their ids.
        best: the machine's rates, by threads and clock.
    """

    device: str
    wanted: Mapping[str, Sequence[str]]
    rounds: int
    seconds: float
    quick: bool = False
    save: Path | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    best: dict[object, dict[str, float]] = field(default_factory=dict)

    @functools.cache  # noqa: B019 (a run has one session)
    def file(self, table: str) -> ResultFile | None:
        """The result file of a table, where results are kept."""
        if self.save is None:
            return None
        kind = "gpu" if self.device == "cuda" else "cpu"
        return ResultFile(self.save / f"{table}_{kind}.json", self.device)

    def outcome(self, case: Case, table: str, *, timed: bool) -> Outcome:
        """The outcome of a case, measured if it was not yet; without ``timed`` its results are only checked."""
        if case.id not in self.outcomes:
            labels = {"case": case.id, "operator": case.operator, **case.labels, "device": case.device}
            outcome = Outcome({**labels, "skipped": dict(case.skipped), "failures": {}})
            try:
                with measure.on_threads(case.threads):
                    self._measure(case, outcome) if timed else self._check(case, outcome.row)
            except Exception as error:  # reported by every peer's test, and not tried again for each
                outcome.row["failures"]["all"] = described(error)
            self.outcomes[case.id] = outcome
            file = self.file(table) if timed else None
            if file is not None:
                file.add(outcome.row)
            torch.compiler.reset()
            if case.device == "cuda":
                torch.cuda.empty_cache()
        return self.outcomes[case.id]

    def _check(self, case: Case, row: Row) -> dict[str, Call]:
        """The calls of the selected peers that agree; those without enough memory are skipped."""
        available, skipped = measure.available_bytes(case.device), row["skipped"]
        for peer, needed in case.needed_bytes.items():
            if needed > available:
                reason = f"needs about {needed / 1e9:.3g} GB, and {available / 1e9:.3g} GB are available"
                skipped.setdefault(peer, reason)
        peers = [peer for peer in case.peers if peer in self.wanted[case.id] and peer not in skipped]
        calls, errors, failures = agreeing(case, peers, skipped)
        row |= {"difference": errors, "tolerance": case.tolerance, "failures": failures}
        return calls

    def _measure(self, case: Case, outcome: Outcome) -> None:
        row, rates = outcome.row, self._rates(case)
        calls = self._check(case, row)
        if not calls:
            return
        for part in case.parts:
            calls[part] = case.build(part)
        outcome.rounds = measure.interleaved(calls, self.rounds, case.device, self.seconds, clock_of(case))
        times, floor = measure.timings(outcome.rounds), case.floor.milliseconds(rates)
        row |= {"milliseconds": times, "rates": rates, "floor": {**asdict(case.floor), **floor}}
        row |= {"threads": torch.get_num_threads(), "versions": package_versions(times)}
        row |= summarised(times, max(floor.values()))
        peers = [peer for peer in case.peers if peer in calls]
        if case.device == "cuda":
            row["peak_bytes"] = {peer: measure.peak_bytes(lambda peer=peer: calls[peer], "cuda") for peer in peers}
            if case.graph:
                graphs = measure.interleaved(captured(calls), self.rounds, "cuda")
                row["graph_milliseconds"] = measure.timings(graphs)
            calls.clear()
        else:
            row["peak_bytes"] = self._peaks(row, case, peers)
            if case.page_faults and peers:
                arguments = (timed_alone, case, peers, self.rounds, self.seconds)
                row["without_page_faults"] = measure.in_new_process(*arguments, environment=measure.NO_PAGE_FAULTS)
        if case.batches is not None:
            self._count_batches(case, row, peers)

    def _rates(self, case: Case) -> Rates:
        """The best that the machine has shown in this run, measured again for each case: other work comes and goes."""
        rounds, clock = 3 if self.quick else 9, clock_of(case)
        now = measure.measure_rates(case.device, quick=self.quick, rounds=rounds, clock=clock)
        best = self.best.setdefault((case.threads, clock), {})
        best |= {name: max(rate, best.get(name, 0.0)) for name, rate in now.items()}
        return dict(best)

    def _peaks(self, row: Row, case: Case, peers: Sequence[str]) -> dict[str, int]:
        """Peak memory of each peer in a process of its own; one whose process dies is a failure."""
        found = {}
        for peer in peers:
            try:
                found[peer] = measure.in_new_process(peak_of, case, peer, preload=__name__)
            except Exception as error:  # out of memory, most likely
                row["failures"][f"{peer}, memory"] = f"its process ended: {described(error)}"
        return found

    def _count_batches(self, case: Case, row: Row, peers: Sequence[str]) -> None:
        """Images a second, and the largest batch in each memory."""
        batches, (small, large) = case.batches, case.batches.sizes
        second = self._peaks(row, batches.at(large), peers)
        medians = {peer: row["milliseconds"][peer]["median"] for peer in peers}
        row["images_per_second"] = {peer: rounded(1e3 * small / median) for peer, median in medians.items()}
        row["memory_batches"] = [small, large]
        both = {peer: {str(small): row["peak_bytes"][peer], str(large): second[peer]} for peer in second}
        row |= {"peak_bytes_at": both, "weights_bytes": batches.weights_bytes, "image_bytes": batches.image_bytes}
        row["largest_batch"] = batches.largest(both)


# ---- parts of it, some of which run in processes of their own --------------------------------------------------------


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def agreeing(
    case: Case, peers: Collection[str], skipped: Collection[str] = ()
) -> tuple[dict[str, Call], dict[str, float], dict[str, str]]:
    """The peers that run and agree with the first one; all differences; and what failed.

    The first peer is always run, if it is not skipped, as the others are compared with it.
    """
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    expected: Results | None = None
    first = [case.peers[0]] if peers and case.peers[0] not in skipped else []
    for peer in dict.fromkeys((*first, *peers)):
        try:
            call = case.build(peer)
            results = case.compared(call())
        except Exception as error:  # a peer's failure must not take the others' numbers away
            failures[peer] = described(error)
        else:
            expected = results if expected is None else expected
            errors[peer] = rounded(difference(results, expected), 3)
            if errors[peer] > case.tolerance:
                failures[peer] = f"differs from {next(iter(errors))} by {errors[peer]}, allowed {case.tolerance}"
            elif peer in peers:
                calls[peer] = call
        if peer in failures:
            print(f"{case.id}: {peer}: {failures[peer]}", file=sys.stderr, flush=True)
    return calls, errors, failures


def summarised(times: Mapping[str, Mapping[str, float]], floor: float = 0.0) -> Row:
    """What follows from a case's times: our best back end, ratios to it, and the share of the floor reached.

    A network that is compiled around our operators is not what others are compared with.
    """
    medians = {name: time["median"] for name, time in times.items()}
    ours = [name for name in medians if is_ours(name) and name not in (OURS_COMPILED, OPTIMIZED_COMPILED)]
    best = min(ours, key=lambda name: medians[name], default=None)
    return {
        "ours": best,
        "ratio": {name: round(median / medians[best], 3) for name, median in medians.items()} if best else {},
        "floor_reached": {name: round(floor / median, 4) for name, median in medians.items() if floor and median},
    }


def captured(calls: Mapping[str, Call]) -> dict[str, Callable[[], object]]:
    """CUDA graphs of the calls that can be captured: what remains of their time without the launches from Python."""
    graphs: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError as error:
            print(f"{name} cannot be captured: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            torch.cuda.synchronize()
        else:
            graphs[name] = graph.replay
    return graphs


def peak_of(case: Case, peer: str) -> int:
    """Bytes that a peer's call takes on top of its inputs and modules."""
    with measure.on_threads(case.threads):
        return measure.peak_bytes(lambda: case.build(peer), case.device, warm=peer not in case.hoarding)


def timed_alone(case: Case, peers: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Times, and the ratios to the fastest of ours."""
    calls = {peer: case.build(peer) for peer in peers}
    times = measure.timings(measure.interleaved(calls, rounds, case.device, seconds))
    return {"milliseconds": times, "times_ours": summarised(times)["ratio"]}
