"""Measures a case: do the peers agree, how long do they take, how much memory, how far are they from the floor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import cross_entropy, network, pyramid
from benchmarks.case import OURS_COMPILED, Call, Case, Results, difference, is_ours
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Timing, interleaved, peak_bytes, rounds_in_turn, timing

Row = dict[str, Any]
NETWORK = ("training_step", "inference")


def all_cases(device: str, *, quick: bool = False, only: Iterable[str] = ()) -> list[Case]:
    """The cases of a device, of the operators in ``only`` (all, where empty).

    Raises:
        ValueError: ``only`` names an operator without a case.
    """
    cases = [case for module in (cross_entropy, pyramid, network) for case in module.cases(device, quick=quick)]
    known = list(dict.fromkeys(case.operator for case in cases))
    wanted = list(only) or known
    if unknown := set(wanted) - set(known):
        raise ValueError(f"no benchmark of {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    return [case for case in cases if case.operator in wanted]


def rounds_of(case: Case, asked: int | None) -> int:
    """Rounds to measure: as asked, else few of a whole network and more of one operator."""
    few, many = (5, 9) if case.device == "cpu" else (10, 30)
    return asked or (few if case.operator in NETWORK else many)


def measure_case(case: Case, ceilings: Ceilings, rounds: int, seconds: float = 0.0) -> Row:
    """The row of a case; a peer that fails or disagrees is told in ``failures`` and not timed.

    Peak memory is measured here on a GPU alone: on a CPU each peer needs a process of its own (:func:`peak_of`).
    """
    return measured(case, ceilings, rounds, seconds=seconds)[0]


def measured(
    case: Case, ceilings: Ceilings, rounds: int, *, seconds: float = 0.0, peers: Collection[str] | None = None
) -> tuple[Row, dict[str, list[float]]]:
    """The row of a case, and the milliseconds of every round behind it.

    ``rounds`` and ``seconds`` are those of :func:`benchmarks.measure.rounds_in_turn`; ``peers`` are who is measured,
    all where None.
    """
    calls, errors, failures = agreeing(case, peers)
    for part in case.parts:
        calls[part] = case.build(part)
    milliseconds = rounds_in_turn(calls, rounds, case.device, seconds)
    row: Row = {
        "case": case.id,
        "operator": case.operator,
        **case.labels,
        "device": case.device,
        "milliseconds": _as_dicts({name: timing(values) for name, values in milliseconds.items()}),
        "difference": errors,
        "failures": failures,
        "floor": {
            **asdict(case.floor),
            "memory_milliseconds": float(f"{case.floor.memory_milliseconds(ceilings):.4g}"),
            "arithmetic_milliseconds": float(f"{case.floor.arithmetic_milliseconds(ceilings):.4g}"),
        },
        "gradient_bytes": case.gradient_bytes,
    }
    if case.device == "cuda":
        row["peak_bytes"] = {peer: _peak(calls[peer]) for peer in case.peers if peer in calls}
        if case.graph:
            row["graph_milliseconds"] = _as_dicts(interleaved(_graphs(calls), rounds, "cuda"))
    return summarised(row), milliseconds


def agreeing(
    case: Case, peers: Collection[str] | None = None
) -> tuple[dict[str, Call], dict[str, float], dict[str, str]]:
    """The peers that run and agree with the first one; all differences; and what failed.

    ``peers`` are who is wanted, all where None; the first one is always run, as the others are compared with it.
    """
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    expected: Results | None = None
    wanted = case.peers if peers is None else [name for name in case.peers if name in peers]
    for peer in dict.fromkeys((case.peers[0], *wanted)):
        try:
            call = case.build(peer)
            results = case.compared(call())
        except Exception as error:  # a peer's failure must not take the others' numbers away
            failures[peer] = f"{type(error).__name__}: {error}"[:500]
            print(f"{case.id}: {peer} fails: {failures[peer]}", file=sys.stderr, flush=True)
            continue
        expected = results if expected is None else expected
        errors[peer] = float(f"{difference(results, expected):.3g}")
        if errors[peer] <= case.tolerance:
            if peer in wanted:
                calls[peer] = call
        else:
            failures[peer] = f"differs from {case.peers[0]} by {errors[peer]}, allowed {case.tolerance}"
            print(f"{case.id}: {peer} {failures[peer]}", file=sys.stderr, flush=True)
    return calls, errors, failures


def _graphs(calls: dict[str, Call]) -> dict[str, Callable[[], object]]:
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
            continue
        graphs[name] = graph.replay
    return graphs


def peak_of(case_id: str, peer: str, device: str, *, quick: bool) -> int:
    """Bytes that a peer's call takes on top of its inputs and modules; for a process of its own."""
    (case,) = (case for case in all_cases(device, quick=quick) if case.id == case_id)
    return peak_bytes(lambda: case.build(peer), device)


def summarised(row: Row) -> Row:
    """The row with what follows from its numbers: our best back end, ratios to it, and the share of the floor reached.

    What is compiled around our operators is told beside it, and is not what others are compared with.
    """
    medians = {name: time["median"] for name, time in row["milliseconds"].items()}
    ours = {name: median for name, median in medians.items() if is_ours(name) and name != OURS_COMPILED}
    floor = max(row["floor"]["memory_milliseconds"], row["floor"]["arithmetic_milliseconds"])
    row["ours"] = min(ours, key=lambda name: ours[name]) if ours else None
    row["ratio"] = {name: round(median / ours[row["ours"]], 3) for name, median in medians.items()} if ours else {}
    row["floor_reached"] = {name: round(floor / median, 4) for name, median in medians.items() if median}
    return row


def measure_all(cases: Iterable[Case], ceilings: Ceilings, rounds: int | None, seconds: float = 0.0) -> Iterator[Row]:
    """Rows of the cases, one after the other; a case that fails as a whole gives a row that says so.

    Args:
        rounds, seconds: as :func:`measured` takes them; None rounds are those of :func:`rounds_of`.
    """
    for case in cases:
        try:
            yield measure_case(case, ceilings, rounds_of(case, rounds), seconds)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:500]
            yield {"case": case.id, "operator": case.operator, **case.labels, "failures": {"all": message}}
        torch.compiler.reset()
        if case.device == "cuda":
            torch.cuda.empty_cache()


def _peak(call: Call) -> int:
    return peak_bytes(lambda: call, "cuda")


def _as_dicts(timings: dict[str, Timing]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in timings.items()}
