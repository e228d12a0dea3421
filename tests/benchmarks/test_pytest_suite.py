"""`pytest benchmarks/`: a wrong result fails, time never does; what pytest-benchmark stores; what the tables say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import conftest as benchmarks_conftest
from benchmarks import measure
from benchmarks.case import Case
from benchmarks.ceilings import Ceilings, Floor
from benchmarks.suite import session as session_module

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
SUITE = str(ROOT / "benchmarks" / "test_operators.py")
CEILINGS = Ceilings(copy=100.0, read=80.0, float32=1000.0, bfloat16=4000.0)
LABELS = {
    "configuration": "VOC 473", "shape": "3x4", "dtype": "float32", "layout": "NCHW", "direction": "forward",
    "arrangement": "semseg",
}  # fmt: skip

Run = Callable[..., pytest.RunResult]


def fake_case(peers: dict[str, Tensor | Exception], absent: dict[str, str] | None = None) -> Case:
    """A case whose peers return the given tensors, or raise the given exceptions."""

    def build(peer: str) -> Any:
        def call() -> tuple[Tensor, ...]:
            result = peers[peer]
            if isinstance(result, Exception):
                raise result
            return (result,)

        return call

    floor = Floor(10**6, 10**6)
    return Case("pyramid_concat", LABELS, "cpu", tuple(peers), build, floor, 1e-3, absent=absent or {})


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the suite's own test file and hooks over a given case, without its processes."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in whose processes pytest-benchmark measures nothing
    monkeypatch.setattr(session_module, "measure_ceilings", lambda device: CEILINGS)
    monkeypatch.setattr(session_module.Session, "_peak", lambda self, case, peer: 3_000_000)

    def result(case: Case, *arguments: str) -> pytest.RunResult:
        monkeypatch.setattr(benchmarks_conftest, "suite_cases", lambda device, quick: [case])
        storage = f"--benchmark-storage={pytester.path / 'stored'}"
        options = [SUITE, "--device=cpu", "--benchmark-max-time=0", storage, "-p", "no:cacheprovider"]
        return pytester.runpytest_inprocess(*options, *arguments)

    return result


ONE = torch.ones(8)
RIGHT = {"eager": ONE, "compile": ONE, "pspnet_fast cpu": ONE}


def test_peers_that_agree_pass_and_are_told(run: Run) -> None:
    result = run(fake_case(RIGHT, {"transformers": "not installed: pip install transformers"}))
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*benchmark 'pyramid_concat, VOC 473, 3x4, float32 NCHW, as semseg': 3 tests*",
            "*pspnet_fast beside its peers*",
            "copy 100.0 GB/s*",
            "pyramid_concat, VOC 473, 3x4, float32, NCHW, forward",
            "  as semseg: align_corners, x first, 3x3 convolution",
            "  floor: 0.01 ms for 1 MB, 0.001 ms for 0.001 GFLOP in float32",
            "*median*p20 to p80*x ours*peak*of floor*",
            "  eager * ms * to * 3.0 MB * %",
            "  pspnet_fast cpu * ms * to * 1.00 * 3.0 MB * %",
            "  transformers * not installed: pip install transformers",
            "SKIPPED*transformers: not installed: pip install transformers",
        ]
    )


@pytest.mark.parametrize("disabled", [False, True], ids=["timed", "checked alone"])
@pytest.mark.parametrize("wrong", ["compile", "pspnet_fast cpu"])
def test_a_wrong_peer_fails_and_is_not_timed(run: Run, wrong: str, disabled: bool) -> None:
    result = run(fake_case({**RIGHT, wrong: ONE * 1.01}), *(["--benchmark-disable"] if disabled else []))
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [f"*{wrong} differs from eager by 0.01, allowed 0.001", "*pspnet_fast beside its peers*"]
    )
    result.stdout.fnmatch_lines([f"  {wrong} * FAILED: differs from eager by 0.01, allowed 0.001"])
    result.stdout.no_fnmatch_line(f"  {wrong} * ms *")


def test_a_wrong_eager_is_told_by_ours(run: Run) -> None:
    run(fake_case({**RIGHT, "eager": ONE * 2})).assert_outcomes(passed=1, failed=2)


def test_a_peer_without_a_compiler_is_skipped_but_ours_has_no_excuse(run: Run) -> None:
    result = run(fake_case({**RIGHT, "compile": RuntimeError("no compiler")}))
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["  compile * FAILED: RuntimeError: no compiler"])
    run(fake_case({**RIGHT, "pspnet_fast cpu": RuntimeError("broken")})).assert_outcomes(passed=2, failed=1)


def test_nothing_passes_unchecked(run: Run) -> None:
    broken = MemoryError("too large")
    result = run(fake_case({**RIGHT, "eager": broken, "compile": broken}))
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*nothing says whether its result is right*"])


def test_a_case_that_cannot_be_measured_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object) -> int:
        raise OSError("no process")

    case = fake_case(RIGHT)
    monkeypatch.setattr(session_module.Session, "_peak", no_process)
    result = run(case)
    result.assert_outcomes(failed=1, skipped=2)
    result.stdout.fnmatch_lines(["*FAILED: OSError: no process"])


def test_only_selected_peers_run(run: Run) -> None:
    result = run(fake_case({**RIGHT, "compile": RuntimeError("compiled")}), "-k", "not compile")
    result.assert_outcomes(passed=2, deselected=1)
    result = run(fake_case(RIGHT), "-k", "pspnet_fast")  # the first peer is run to compare with, and not timed
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.no_fnmatch_line("  eager * ms *")


def test_json_holds_real_rounds_and_every_number_of_the_table(run: Run, pytester: pytest.Pytester) -> None:
    run(fake_case(RIGHT), "--benchmark-json=new/out.json", "--benchmark-min-rounds=7").assert_outcomes(passed=3)
    stored = json.loads((pytester.path / "new" / "out.json").read_text())
    assert {"device", "threads", "torch", "commit", "digest", "load"} <= set(stored["machine"])
    by_peer = {entry["extra_info"]["peer"]: entry for entry in stored["benchmarks"]}
    assert list(by_peer) == list(RIGHT)
    for peer, entry in by_peer.items():
        told = entry["extra_info"]
        assert entry["group"] == "pyramid_concat, VOC 473, 3x4, float32 NCHW, as semseg"
        assert (entry["stats"]["rounds"], told["milliseconds"]["rounds"]) == (7, 7)
        assert told["milliseconds"]["median"] == pytest.approx(1e3 * entry["stats"]["median"], rel=1e-3)
        assert set(told["ratio"]) == set(RIGHT)
        assert told["ratio"][peer] == 1
        assert told["ratio"]["pspnet_fast cpu"] == pytest.approx(told["times_ours"], rel=1e-3, abs=1e-3)
        assert (told["peak_bytes"], told["ceilings"]["copy"], told["difference"]) == (3_000_000, 100.0, 0.0)
        assert told["floor_reached"] == pytest.approx(0.01 / told["milliseconds"]["median"], rel=1e-2)


def test_save_keeps_what_is_measured_part_by_part(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    first, second = fake_case(RIGHT), replace(fake_case(RIGHT), operator="pyramid_conv")
    run(first, "--save").assert_outcomes(passed=3)
    run(second, "--save").assert_outcomes(passed=3)
    stored = json.loads((tmp_path / "suite_cpu.json").read_text())
    assert [row["case"] for row in stored["rows"]] == [first.id, second.id]
    assert set(stored["rows"][0]["milliseconds"]) == set(RIGHT)
    assert stored["rows"][0]["peak_bytes"] == dict.fromkeys(RIGHT, 3_000_000)
    assert {"device", "commit", "digest"} <= set(stored["machine"])
    run(first, "--save", "--benchmark-disable").assert_outcomes(passed=3)  # nothing was timed: nothing is replaced
    assert json.loads((tmp_path / "suite_cpu.json").read_text()) == stored


def test_quick_measurements_are_not_saved(run: Run) -> None:
    result = run(fake_case(RIGHT), "--save", "--quick")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--save: what --quick measures is not to be quoted*"])


def test_runs_are_saved_and_compared(run: Run) -> None:
    run(fake_case(RIGHT), "--benchmark-autosave").assert_outcomes(passed=3)
    result = run(fake_case(RIGHT), "--benchmark-compare")
    result.assert_outcomes(passed=3)
    for peer in ("eager", "compile", "pspnet_fast_cpu"):
        result.stdout.fnmatch_lines_random([f"test_peer*{peer}] (NOW) *", f"test_peer*{peer}] (0001_*) *"])


def test_quick_selects_small_shapes(pytester: pytest.Pytester) -> None:
    quick, full = (
        pytester.runpytest_inprocess(SUITE, "--device=cpu", "--collect-only", "-q", "-p", "no:cacheprovider", *options)
        for options in (["--quick"], [])
    )
    assert any("[dual_cross_entropy-VOC_473-float32-NCHW-semseg-eager]" in line for line in quick.outlines)
    assert not any("Cityscapes" in line for line in quick.outlines)
    for name in ("Cityscapes_713", "Cityscapes_512x1024", "ADE20K_473", "VOC_473", "COCO-Stuff_512"):
        assert any(name in line for line in full.outlines)


def test_pytest_alone_collects_the_tests_alone(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
