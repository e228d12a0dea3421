"""`pytest benchmarks/`: a wrong result fails, time never does; what is stored; what the tables say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import RATES, fake_case, operator_row, timings
from torch import Tensor

from benchmarks import conftest as benchmarks_conftest
from benchmarks import measure
from benchmarks.case import MEMORIES, Batches, Case
from benchmarks.cases import cases_of
from benchmarks.conftest import case_table
from benchmarks.markdown import short
from benchmarks.session import Outcome, Session, summarised

pytest_plugins = ["pytester"]

SUITE = str(Path(__file__).parents[2] / "benchmarks" / "test_peers.py")
ONE = torch.ones(8)
RIGHT: dict[str, Tensor | Exception] = {"eager": ONE, "compile": ONE, "pspnet_fast cpu": ONE}
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the suite's own test file and hooks over one case of the table "projects", without its processes."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in whose processes pytest-benchmark measures nothing
    monkeypatch.setattr(measure, "measure_rates", lambda device, **_: RATES)
    monkeypatch.setattr(measure, "in_new_process", lambda *arguments, **options: 3_000_000)

    def result(case: Case, *arguments: str) -> pytest.RunResult:
        monkeypatch.setattr(benchmarks_conftest, "cases_of", lambda table, *_, **__: [case] * (table == "projects"))
        storage = f"--benchmark-storage={pytester.path / 'stored'}"
        options = [SUITE, "--device=cpu", "--benchmark-max-time=0", storage]
        return pytester.runpytest_inprocess(*options, "-p", "no:cacheprovider", *arguments)

    return result


def test_peers_that_agree_pass_and_are_shown(run: Run) -> None:
    result = run(fake_case(RIGHT, skipped={"transformers": "not installed: pip install transformers"}))
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*benchmark 'pyramid_concat, VOC 473, 3x4, float32, NCHW, forward, semseg': 3 tests*",
            "*pspnet_fast compared with its peers*",
            "copy 100 GB/s*",
            "pyramid_concat, VOC 473, 3x4, float32, NCHW, forward, semseg",
            "floor: 0.01 ms for 1 MB, 0.001 ms for 0.001 GFLOP in float32",
            "| * | median | p20 to p80 | x ours | peak | of floor |",
            "| eager | * ms | * to * | * | 3 MB | * % |",
            "| pspnet_fast cpu | * ms | * to * | 1.00 | 3 MB | * % |",
            "transformers: not installed: pip install transformers",
            "SKIPPED*transformers: not installed: pip install transformers",
        ]
    )


@pytest.mark.parametrize("disabled", [False, True], ids=["timed", "checked alone"])
@pytest.mark.parametrize("wrong", ["compile", "pspnet_fast cpu"])
def test_a_wrong_peer_fails_and_is_not_timed(run: Run, wrong: str, disabled: bool) -> None:
    result = run(fake_case({**RIGHT, wrong: ONE * 1.01}), *(["--benchmark-disable"] if disabled else []))
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"*{wrong}: differs from eager by 0.01, allowed 0.001"])
    result.stdout.fnmatch_lines([f"{wrong} FAILED: differs from eager by 0.01, allowed 0.001"])
    result.stdout.no_fnmatch_line(f"| {wrong} | * ms *")


def test_failures_of_others_are_skips_and_ours_are_not(run: Run) -> None:
    run(fake_case({**RIGHT, "eager": ONE * 2})).assert_outcomes(passed=1, failed=2)
    broken = RuntimeError("no compiler")
    result = run(fake_case({**RIGHT, "compile": broken}))
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["compile FAILED: RuntimeError: no compiler"])
    run(fake_case({**RIGHT, "pspnet_fast cpu": broken})).assert_outcomes(passed=2, failed=1)


def test_nothing_passes_unchecked(run: Run) -> None:
    broken = MemoryError("too large")
    result = run(fake_case({**RIGHT, "eager": broken, "compile": broken}))
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*nothing says whether its result is right*"])


def test_a_case_that_cannot_be_measured_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "interleaved", lambda *_: 1 / 0)
    result = run(fake_case(RIGHT))
    result.assert_outcomes(failed=1, skipped=2)
    result.stdout.fnmatch_lines(["*FAILED: ZeroDivisionError: division by zero"])


def test_only_selected_peers_run(run: Run) -> None:
    result = run(fake_case({**RIGHT, "compile": RuntimeError("compiled")}), "-k", "not compile")
    result.assert_outcomes(passed=2, deselected=1)
    result = run(fake_case(RIGHT), "-k", "pspnet_fast")  # the first peer is run to compare with, and not timed
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.no_fnmatch_line("| eager | * ms *")


def test_what_does_not_fit_is_not_tried(run: Run) -> None:
    result = run(fake_case({**RIGHT, "compile": MemoryError()}, needed_bytes={"compile": 10**15}))
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*compile: needs about 1e+06 GB, and * GB are available"])


def test_json_holds_real_rounds_and_every_number_of_the_table(run: Run, pytester: pytest.Pytester) -> None:
    run(fake_case(RIGHT), "--benchmark-json=new/out.json", "--benchmark-min-rounds=7").assert_outcomes(passed=3)
    stored = json.loads((pytester.path / "new" / "out.json").read_text())
    assert {"device", "threads", "torch", "commit", "digest", "load"} <= set(stored["machine"])
    assert [entry["extra_info"]["peer"] for entry in stored["benchmarks"]] == list(RIGHT)
    for entry in stored["benchmarks"]:
        peer, row = entry["extra_info"]["peer"], entry["extra_info"]["row"]
        assert entry["group"] == "pyramid_concat, VOC 473, 3x4, float32, NCHW, forward, semseg"
        assert (entry["stats"]["rounds"], row["milliseconds"][peer]["rounds"]) == (7, 7)
        assert row["milliseconds"][peer]["median"] == pytest.approx(1e3 * entry["stats"]["median"], rel=1e-3)
        assert (row["peak_bytes"][peer], row["rates"]["copy"], row["difference"][peer]) == (3_000_000, 100.0, 0.0)


def test_save_keeps_what_is_measured_part_by_part(run: Run, tmp_path: Path) -> None:
    first, second = fake_case(RIGHT), fake_case(RIGHT, operator="pyramid_conv")
    for case in (first, second):
        run(case, f"--save={tmp_path}").assert_outcomes(passed=3)
    stored = json.loads((tmp_path / "projects_cpu.json").read_text())
    assert [row["case"] for row in stored["rows"]] == [first.id, second.id]
    assert set(stored["rows"][0]["milliseconds"]) == set(RIGHT)
    assert stored["rows"][0]["peak_bytes"] == dict.fromkeys(RIGHT, 3_000_000)
    assert {"device", "commit", "digest"} <= set(stored["machines"][0])
    run(first, f"--save={tmp_path}", "--benchmark-disable").assert_outcomes(passed=3)  # nothing timed, nothing replaced
    run(first, f"--save={tmp_path}", "--resume").assert_outcomes(skipped=3)
    assert json.loads((tmp_path / "projects_cpu.json").read_text()) == stored
    result = run(first, "--save", "--quick")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--save: what --quick measures is not to be quoted*"])


def test_runs_are_saved_and_compared(run: Run) -> None:
    run(fake_case(RIGHT), "--benchmark-autosave").assert_outcomes(passed=3)
    result = run(fake_case(RIGHT), "--benchmark-compare")
    result.assert_outcomes(passed=3)
    for peer in ("eager", "compile", "pspnet_fast_cpu"):
        result.stdout.fnmatch_lines_random([f"test_peer*{peer}] (NOW) *", f"test_peer*{peer}] (0001_*) *"])


def test_options_select_cases(pytester: pytest.Pytester) -> None:
    collect = [SUITE, "--device=cpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    lines = "\n".join(pytester.runpytest_inprocess(*collect, "--quick", "--network=layers=34").outlines)
    assert (
        "test_peer[projects-dual_cross_entropy-VOC-473-1x21x60x60-473x473-float32-NCHW-forward+backward-semseg-eager]"
        in lines
    )
    assert "test_peer[end_to_end-training_step-training-34-" in lines
    assert "Cityscapes" not in lines
    result = pytester.runpytest_inprocess(*collect, "--network=depth=3")
    result.stdout.fnmatch_lines(["*--network: no option depth of the network; choose from layers, size, *"])


def test_pytest_alone_collects_the_tests_alone(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]


# ---- rows ------------------------------------------------------------------------------------------------------------


def measured(case: Case, peers: list[str]) -> Outcome:
    session = Session("cpu", {case.id: peers}, rounds=1, seconds=0.0, quick=True)
    return session.outcome(case, "operators", timed=True)


def test_memory_is_measured_in_a_new_process_and_times_without_page_faults() -> None:
    """Of the quick arg-max: eager holds its 21x473x473 logits, ours the labels alone."""
    (case,) = (case for case in cases_of("projects", "cpu", quick=True) if case.operator == "upsample_argmax")
    peers = ["eager", case.peers[-1]]
    row = measured(replace(case, page_faults=True), peers).row
    assert row["failures"] == {}
    assert min(row["rates"].values()) > 0
    labels, logits = 8 * 473 * 473, 4 * 21 * 473 * 473
    assert row["peak_bytes"]["eager"] == pytest.approx(logits + labels, rel=0.15)
    assert row["peak_bytes"][peers[1]] == pytest.approx(labels, rel=0.3)
    assert set(row["without_page_faults"]["milliseconds"]) == set(peers)
    assert row["without_page_faults"]["times_ours"][peers[1]] == 1.0


def test_a_peak_whose_process_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(function: object, case: Case, peer: str, **_: object) -> int:
        if peer == "eager":
            raise RuntimeError("killed")
        return 1

    monkeypatch.setattr(measure, "in_new_process", dies)
    row = measured(fake_case(RIGHT), list(RIGHT)).row
    assert row["peak_bytes"] == {"compile": 1, "pspnet_fast cpu": 1}
    assert row["failures"] == {"eager, memory": "its process ended: RuntimeError: killed"}


def test_largest_batches_follow_from_two_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB and so many more for each image, with weights of 100 MB."""
    sizes = {"eager": 4000, "compile": -2, "pspnet_fast cpu": 10}
    monkeypatch.setattr(
        measure,
        "in_new_process",
        lambda _, case, peer, **__: 10**6 * (100 + case.labels["batch"] * sizes[peer]),
    )
    at = [fake_case(RIGHT, labels={"shape": "", "batch": batch}) for batch in range(17)]
    batches = Batches(at.__getitem__, (2, 16), least=2, weights_bytes=10**8, image_bytes=10**6)
    row = measured(replace(at[2], batches=batches), list(RIGHT)).row
    assert [int(memory) for memory in row["largest_batch"]] == [*MEMORIES]
    for memory, found in row["largest_batch"].items():
        fits = {peer: (1000 * int(memory) - 200) // (size + 1) for peer, size in sizes.items()}
        # One image alone cannot be trained on; memory that does not grow has no largest batch.
        assert found == {**fits, "eager": {8: 0, 24: 5, 80: 19}[int(memory)], "compile": None}
    assert row["peak_bytes_at"]["pspnet_fast cpu"] == {"2": 120_000_000, "16": 260_000_000}
    for peer, rate in row["images_per_second"].items():
        assert rate == pytest.approx(2000 / row["milliseconds"][peer]["median"], rel=1e-3)


def test_floors_are_of_the_best_rates_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([(40.0, 100.0, 400.0), (20.0, 200.0, 300.0), (1.0, 3.0, 4.0)])
    clocks: list[object] = []

    def measure_rates(device: str, *, clock: object, **_: object) -> dict[str, float]:
        clocks.append(clock)
        return dict(zip(RATES, next(numbers), strict=True))

    monkeypatch.setattr(measure, "measure_rates", measure_rates)
    monkeypatch.setattr(measure, "in_new_process", lambda *_, **__: 1)
    cases = [fake_case(RIGHT), fake_case(RIGHT, operator="pyramid_conv"), fake_case(RIGHT, operator="pyramid_pool")]
    cases[2] = replace(cases[2], processor_time=True)
    session = Session("cpu", {case.id: ["eager"] for case in cases}, rounds=1, seconds=0.0)
    first, second, by_processor = (session.outcome(case, "operators", timed=True).row["rates"] for case in cases)
    assert first == {"copy": 40.0, "float32": 100.0, "bfloat16": 400.0}
    assert second == {"copy": 40.0, "float32": 200.0, "bfloat16": 400.0}
    assert by_processor == {"copy": 1.0, "float32": 3.0, "bfloat16": 4.0}
    assert clocks == [time.perf_counter, time.perf_counter, time.process_time]


def test_ratios_and_floor() -> None:
    times = {"eager": 12.0, "compile": 6.0, "pspnet_fast cuda": 2.0, "pspnet_fast triton": 3.0, "x.sum()": 1.0}
    row = summarised({name: {"median": value} for name, value in times.items()}, floor=1.0)
    assert (row["ours"], row["floor_reached"]["pspnet_fast cuda"]) == ("pspnet_fast cuda", 0.5)
    assert row["ratio"] == {name: value / 2 for name, value in times.items()}


def test_table_has_the_columns_that_were_measured() -> None:
    row = operator_row("dual_cross_entropy", milliseconds=timings(eager=12.345), ratio={"eager": 2.5}, skipped={})
    kept = {"milliseconds": {"eager": {"median": 7.0}}, "times_ours": {"eager": 1.5}}
    on_cpu = list(case_table({**row, "without_page_faults": kept}))
    assert on_cpu[-3] == "|  | median | p20 to p80 | x ours | peak | of floor | no page faults | x ours  |"
    assert on_cpu[-1] == "| eager | 12.3 ms | 11.1 to 14.8 | 2.50 | 130 MB | 0.4 % | 7 ms | 1.50 |"
    on_gpu = list(case_table({**row, "graph_milliseconds": {"eager": {"median": 3.0}}}))
    assert on_gpu[-3] == "|  | median | p20 to p80 | x ours | peak | of floor | graph |"
    assert [short(value) for value in (0.0123456, 99.96, 1234.5)] == ["0.0123", "100", "1234"]
