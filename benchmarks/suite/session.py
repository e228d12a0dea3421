"""Measures the cases of a run of pytest, each once and all its peers together, when the first of them is asked for."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.case import Case, is_ours
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.measure import in_fresh_process, peak_bytes
from benchmarks.operators import NO_PAGE_FAULTS
from benchmarks.rows import Row, agreeing, measured
from benchmarks.store import ResultFile
from benchmarks.suite.cases import case_of
from benchmarks.suite.packages import versions


@dataclass(frozen=True)
class Plan:
    """How a run measures.

    Attributes:
        device: "cpu" or "cuda".
        quick: whether the cases are the quick ones.
        rounds, seconds: at least so many rounds, and more until a peer has had so many seconds on average.
    """

    device: str
    quick: bool
    rounds: int
    seconds: float


@dataclass
class Outcome:
    """What became of a case: its row, and the milliseconds of every round of every peer that was timed."""

    row: Row
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def wrong(self, peer: str) -> str | None:
        """Why a peer's result is wrong, or None: it is right, or there is none."""
        errors = self.row.get("difference", {})
        return self.row["failures"].get(peer) if peer in errors else None

    @property
    def unchecked(self) -> bool:
        """Whether nobody else gave a result that ours could be compared with (no memory for full-resolution logits?)"""
        return all(is_ours(peer) for peer in self.row.get("difference", {}))

    def broken(self, peer: str) -> str | None:
        """Why a peer gives no result, or None."""
        failures = self.row["failures"]
        return failures.get("all") or (failures.get(peer) if self.wrong(peer) is None else None)


class Session:
    """The outcomes of a run.

    Args:
        plan: how it measures.
        wanted: the selected peers of each case, by its id.
        file: where rows that were timed are kept besides.
    """

    def __init__(self, plan: Plan, wanted: Mapping[str, Sequence[str]], file: ResultFile | None = None) -> None:
        self.plan, self.wanted, self.file = plan, wanted, file
        self.outcomes: dict[str, Outcome] = {}
        self.best: dict[str, float] = {}

    def _ceilings(self) -> Ceilings:
        """The best that the machine has shown in this run, measured again for each case: other work comes and goes."""
        now = measure_ceilings(self.plan.device).as_dict()
        self.best = {name: max(rate, self.best.get(name, 0.0)) for name, rate in now.items()}
        return Ceilings(**self.best)

    @functools.cached_property
    def _processes(self) -> ProcessPoolExecutor:
        """A fresh process for every task, forked from one that has imported everything and run nothing."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "torch._inductor.compile_fx"])
        return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)

    def outcome(self, case: Case, *, timed: bool) -> Outcome:
        """The outcome of a case, measured if it was not yet; without ``timed`` its results are checked alone."""
        if case.id not in self.outcomes:
            try:
                self.outcomes[case.id] = self._measure(case) if timed else self._check(case)
            except Exception as error:  # told by every peer's test, and not tried again for each
                message = f"{type(error).__name__}: {error}"[:500]
                self.outcomes[case.id] = Outcome({**named(case), "failures": {"all": message}})
            if timed and self.file is not None:
                self.file.add(self.outcomes[case.id].row)
            torch.compiler.reset()
            if case.device == "cuda":
                torch.cuda.empty_cache()
        return self.outcomes[case.id]

    def _check(self, case: Case) -> Outcome:
        _, errors, failures = agreeing(case, self.wanted[case.id])
        return Outcome({**named(case), "difference": errors, "failures": failures})

    def _measure(self, case: Case) -> Outcome:
        plan = self.plan
        ceilings = self._ceilings()
        row, rounds = measured(case, ceilings, plan.rounds, seconds=plan.seconds, peers=self.wanted[case.id])
        row |= {"ceilings": ceilings.as_dict(), "tolerance": case.tolerance, "absent": dict(case.absent)}
        row["versions"] = versions(rounds)
        if case.device == "cpu":
            row["peak_bytes"] = {peer: self._peak(case, peer) for peer in rounds}
            if case.page_faults and rounds:
                row["without_page_faults"] = self._without_page_faults(case, list(rounds))
        return Outcome(row, rounds)

    def _peak(self, case: Case, peer: str) -> int:
        return self._processes.submit(peak_of, case.id, peer, quick=self.plan.quick).result()

    def _without_page_faults(self, case: Case, peers: list[str]) -> dict[str, Any]:
        """Times and ratios of the same in a process whose C library gives no memory back."""
        plan = self.plan
        options = ["--rounds", str(plan.rounds), "--seconds", str(plan.seconds), *(["--quick"] if plan.quick else [])]
        arguments = ["--case", case.id, "--peers", ",".join(peers), *options]
        row: Row = in_fresh_process("benchmarks.suite", *arguments, environment=NO_PAGE_FAULTS)
        return {"milliseconds": row["milliseconds"], "times_ours": row["ratio"]}

    def close(self) -> None:
        """End the processes."""
        if "_processes" in self.__dict__:
            self._processes.shutdown()


def named(case: Case) -> Row:
    """What a row says of its case."""
    absent = dict(case.absent)
    return {"case": case.id, "operator": case.operator, **case.labels, "device": case.device, "absent": absent}


def peak_of(case_id: str, peer: str, *, quick: bool) -> int:
    """Bytes that a peer's call takes on a CPU on top of its inputs; for a process of its own."""
    return peak_bytes(lambda: case_of(case_id, "cpu", quick=quick).build(peer), "cpu")
