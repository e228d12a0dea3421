"""The cases of `pytest benchmarks/`: all peers of a case are one function, and another function is found out."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import pyramid
from benchmarks.case import Call, Case, difference, is_ours
from benchmarks.ceilings import Ceilings
from benchmarks.measure import rounds_in_turn
from benchmarks.rows import agreeing
from benchmarks.suite import heads, losses, maps
from benchmarks.suite import session as session_module
from benchmarks.suite.cases import function_words, group_name, peer_id, peers_and_absent, suite_cases
from benchmarks.suite.configurations import (
    MMSEG,
    SEMSEG,
    SMP,
    TRANSFORMERS,
    Configuration,
    Precision,
    configurations,
    of_distinct_maps,
)
from benchmarks.suite.packages import PACKAGES, absence
from benchmarks.suite.recording import ReplayClock
from benchmarks.suite.session import Plan, Session
from benchmarks.suite.tables import group_table, milliseconds_text

# Small, and with what tells arrangements apart: ignored pixels, a crop that is no multiple of the map.
SMALL = Configuration("small", SEMSEG, 5, (121, 97), 2, channels=32)
EXACT = Precision(torch.float32, "NCHW")
EAGER_AND_OURS = ("eager", "pspnet_fast")


def small_cases() -> list[Case]:
    """Every operator and arrangement, on a small map."""
    every = [losses.losses(SMALL, EXACT, project, "cpu") for project in losses.ARRANGEMENTS]
    every += [heads.head(SMALL, EXACT, project, "cpu") for project in heads.ARRANGEMENTS]
    every += [
        make(replace(SMALL, recipe=recipe), EXACT, "cpu")
        for recipe in (SEMSEG, MMSEG)
        for make in (maps.concat, maps.conv)
    ]
    return [*every, maps.pool(SMALL, EXACT, "cpu"), losses.argmax(SMALL, "cpu")]


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: f"{case.operator}-{case.labels['arrangement']}")
def test_peers_are_one_function(case: Case) -> None:
    """Those that need no compiler; projects where they are installed."""
    peers = [peer for peer in case.peers if peer != "compile"]
    calls, errors, failures = agreeing(case, peers)
    assert failures == {}
    assert list(calls) == peers
    assert errors["eager"] == 0


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: f"{case.operator}-{case.labels['arrangement']}")
def test_work_is_counted(case: Case) -> None:
    assert case.floor.bytes > 0
    assert case.floor.flops > 0
    assert function_words(case.operator, case.labels["arrangement"])
    assert case.peers[0] == "eager"
    assert is_ours(case.peers[-1])


def other_arrangement(case: Case, other: Case) -> Case:
    """``case``, whose ours computes what ``other`` is."""

    def build(peer: str) -> Call:
        return (other if is_ours(peer) else case).build(peer)

    return replace(case, build=build)


@pytest.mark.parametrize(("project", "other"), [(SEMSEG, MMSEG), (MMSEG, TRANSFORMERS), (TRANSFORMERS, MMSEG)])
def test_another_projects_loss_is_found_out(project: str, other: str) -> None:
    case, wrong = (losses.losses(SMALL, EXACT, name, "cpu") for name in (project, other))
    # The labels of semseg's are no part of the others' results.
    case = replace(case, compared=lambda results: (results[0], *results[-2:]))
    ours = case.peers[-1]
    _, errors, failures = agreeing(other_arrangement(case, wrong), ["eager", ours])
    assert list(failures) == [ours]
    assert errors[ours] > 100 * case.tolerance


@pytest.mark.parametrize("option", [{"align_corners": False}, {"x_first": False}], ids=str)
def test_another_head_is_found_out(option: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    case = heads.head(SMALL, EXACT, SEMSEG, "cpu")
    changed = replace(heads.ARRANGEMENTS[SEMSEG], **option)

    def build(peer: str) -> Call:
        with monkeypatch.context() as patch:
            if is_ours(peer):
                patch.setitem(heads.ARRANGEMENTS, SEMSEG, changed)
            return case.build(peer)

    ours = case.peers[-1]
    _, errors, _ = agreeing(replace(case, build=build), ["eager", ours])
    assert errors[ours] > 3 * case.tolerance


def test_configurations_are_those_of_trainings() -> None:
    chosen = configurations("cpu", quick=False)
    assert {(c.crop, c.classes) for c in chosen} == {
        ((713, 713), 19), ((512, 1024), 19), ((473, 473), 150), ((473, 473), 21), ((512, 512), 171),
    }  # fmt: skip
    assert [c.map_size for c in chosen] == [(90, 90), (64, 128), (60, 60), (60, 60), (64, 64)]
    assert [c.name for c in of_distinct_maps(chosen)] == [
        "Cityscapes 713", "Cityscapes 512x1024", "ADE20K 473", "COCO-Stuff 512",
    ]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_cases_are_told_apart(device: str, quick: bool) -> None:
    cases = suite_cases(device, quick=quick)
    assert {case.operator for case in cases} == {
        "dual_cross_entropy", "upsample_argmax", "pyramid_pool", "pyramid_concat", "pyramid_conv", "psp_head",
    }  # fmt: skip
    groups = [group_name(case) for case in cases]
    assert len(groups) == len(set(groups))
    names = [peer_id(case, peer) for case in cases for peer in peers_and_absent(case)]
    assert len(names) == len(set(names))
    arrangements = {case.labels["arrangement"] for case in cases}
    assert arrangements == {SEMSEG, MMSEG, SMP, TRANSFORMERS}


def test_absent_projects_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, TRANSFORMERS, ("no_such_module", "transformers"))
    assert absence(TRANSFORMERS) == "not installed: pip install transformers"
    case = losses.losses(SMALL, EXACT, TRANSFORMERS, "cpu")
    assert TRANSFORMERS not in case.peers
    assert peers_and_absent(case)[2] == TRANSFORMERS
    assert case.absent == {TRANSFORMERS: "not installed: pip install transformers"}


def test_heads_floor_is_that_of_the_existing_case() -> None:
    existing = pyramid.head((2, 32, 16, 13), "NCHW", "cpu").floor
    ours = heads.head(SMALL, EXACT, SEMSEG, "cpu").floor
    assert ours.flops == existing.flops
    assert ours.bytes == existing.bytes + 3 * 4 * 32 * 32  # and the weights of the levels' 1x1 convolutions


def test_rounds_go_on_for_their_seconds() -> None:
    calls: list[str] = []
    variants = {name: functools.partial(calls.append, name) for name in "ab"}
    assert [len(times) for times in rounds_in_turn(variants, 3).values()] == [3, 3]
    assert "".join(calls) == "ab" * 4
    assert len(rounds_in_turn(variants, 3, seconds=1e3)["a"]) == 100


def test_replayed_rounds_are_what_was_timed() -> None:
    clock = ReplayClock()
    clock.load([0.5, 0.1 + 0.2])
    readings = [clock() for _ in range(4)]
    assert [end - start for start, end in zip(readings[::2], readings[1::2], strict=True)] == [0.5, 0.1 + 0.2]
    with pytest.raises(StopIteration):
        clock()


def test_memory_is_measured_in_a_fresh_process_and_times_without_page_faults() -> None:
    """Of the quick arg-max: eager holds its 21x473x473 logits, ours the labels alone."""
    (case,) = (case for case in suite_cases("cpu", quick=True) if case.operator == "upsample_argmax")
    peers = ["eager", case.peers[-1]]
    session = Session(Plan("cpu", quick=True, rounds=1, seconds=0.0), {case.id: peers})
    row = session.outcome(case, timed=True).row
    session.close()
    assert row["failures"] == {}
    labels, logits = 8 * 473 * 473, 4 * 21 * 473 * 473
    assert row["peak_bytes"]["eager"] == pytest.approx(logits + labels, rel=0.15)
    assert row["peak_bytes"][peers[1]] == pytest.approx(labels, rel=0.3)
    assert set(row["without_page_faults"]["milliseconds"]) == set(peers)
    assert row["without_page_faults"]["times_ours"][peers[1]] == 1.0


def test_floors_are_of_the_best_rates_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([Ceilings(40.0, 30.0, 100.0, 400.0), Ceilings(20.0, 50.0, 200.0, 300.0)])
    monkeypatch.setattr(session_module, "measure_ceilings", lambda device: next(measured))
    monkeypatch.setattr(Session, "_peak", lambda self, case, peer: 1)
    cases = [make(SMALL, EXACT, "cpu") for make in (maps.pool, maps.concat)]
    session = Session(Plan("cpu", quick=True, rounds=1, seconds=0.0), {case.id: ["eager"] for case in cases})
    first, second = (session.outcome(case, timed=True).row["ceilings"] for case in cases)
    assert first == {"copy": 40.0, "read": 30.0, "float32": 100.0, "bfloat16": 400.0}
    assert second == {"copy": 40.0, "read": 50.0, "float32": 200.0, "bfloat16": 400.0}


def row(peers: Sequence[str], **more: Any) -> dict[str, Any]:
    time = {"median": 12.345, "p20": 12.0, "p80": 1234.5, "rounds": 5}
    return {
        "operator": "dual_cross_entropy", "configuration": "VOC 473", "shape": "3 -> 4", "dtype": "float32",
        "layout": "NCHW", "direction": "forward", "arrangement": MMSEG, "failures": {}, "absent": {},
        "milliseconds": dict.fromkeys(peers, time), "ratio": dict.fromkeys(peers, 2.5),
        "floor_reached": dict.fromkeys(peers, 0.125), **more,
    }  # fmt: skip


def test_table_has_the_columns_that_were_measured() -> None:
    kept = {"milliseconds": {"eager": {"median": 7.0}}, "times_ours": {"eager": 1.5}}
    graph = {"eager": {"median": 3.0}}
    on_cpu = list(group_table(row(["eager"], peak_bytes={"eager": 2_500_000}, without_page_faults=kept)))
    assert re.split(r"\s{2,}", on_cpu[2].strip()) == [
        "median", "p20 to p80", "x ours", "peak", "of floor", "no page faults", "x ours",
    ]  # fmt: skip
    assert on_cpu[3].split() == [
        "eager",
        "12.3",
        "ms",
        "12",
        "to",
        "1234",
        "2.50",
        "2.5",
        "MB",
        "12.5",
        "%",
        "7",
        "ms",
        "1.50",
    ]
    on_gpu = list(group_table(row(["eager"], graph_milliseconds=graph)))
    assert on_gpu[2].split() == ["median", "p20", "to", "p80", "x", "ours", "of", "floor", "graph"]


def test_table_of_a_group_without_peers_says_why() -> None:
    told = row([], failures={"all": "OSError: no process"}, absent={"transformers": "not installed"})
    del told["milliseconds"]
    assert [line.strip() for line in group_table(told)][2:] == [
        "transformers  not installed",
        "all           FAILED: OSError: no process",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (9.87654, "9.88"), (99.96, "100"), (1234.5, "1234")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert milliseconds_text(value) == text


def test_smp_decoder_takes_the_stock_heads_weights() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    nets: list[nn.Module] = [heads.network_of(peer, 32, 8, SMP).eval() for peer in ("eager", SMP, "pspnet_fast")]
    x = torch.randn(2, 32, 13, 9)
    with torch.no_grad():
        first, *others = (net(x) for net in nets)
    assert all(difference((y,), (first,)) < 1e-6 for y in others)
