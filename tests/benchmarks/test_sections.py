"""The GPU suite's sections with made-up programs and cases: what they find, and what they call a problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.case import Case
from benchmarks.ceilings import Ceilings, Floor
from benchmarks.gpu import bench, build, sanitizer
from benchmarks.gpu import section as section_module
from benchmarks.gpu.sanitizer_cases import DONE
from benchmarks.gpu.section import Findings
from benchmarks.gpu.tests import Run, run_pytest
from buildtools.cmake import BuildResult

MACHINE = {"device": "NVIDIA Test", "digest": {"cuda": "a"}}


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Findings:
    monkeypatch.setattr(section_module, "gpu_machine", lambda: MACHINE)
    return Findings("bench", section_module.parse(["bench", "--out", str(tmp_path / "out"), "--limit", "600"]))


def found(findings: Findings) -> Any:
    return json.loads((Path(findings.options.out) / "bench.json").read_text())


# ---- tests ----------------------------------------------------------------------------------------------------------

TESTS = """
import os, pytest
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_results(backend):
    assert backend == {right!r} or {right!r} == "both"
def test_expectation():
    assert os.environ["PSPNET_FAST_EXPECT_BACKENDS"] == "cpu,triton,cuda"
"""


@pytest.mark.parametrize("right", ["both", "cuda"])
def test_pytest_is_run_and_counted(right: str, tmp_path: Path, findings: Findings) -> None:
    (tmp_path / "test_made_up.py").write_text(TESTS.format(right=right))
    outcome = run_pytest(Run("made up", (str(tmp_path), f"--rootdir={tmp_path}")), "cuda", findings)
    assert outcome is not None
    assert (outcome.backends["cuda"].passed, outcome.backends["other"].passed) == (1, 1)
    assert outcome.backends["triton"].failed == (right == "cuda")
    assert findings.failed is (right == "cuda")
    if findings.failed:
        assert found(findings)["problems"][0].startswith("made up: 1 tests failed (pytest's exit code 1), the first is")


def test_pytest_without_a_result(findings: Findings) -> None:
    assert run_pytest(Run("made up", ("--no-such-option",)), "cuda", findings) is None
    assert found(findings)["problems"] == ["made up: pytest ended with exit code 4 and no result"]


# ---- sanitizer ------------------------------------------------------------------------------------------------------


def fake_sanitizer(tmp_path: Path, text: str, code: int = 0) -> str:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    program.chmod(0o755)
    return str(program)


def test_sanitizer_section(tmp_path: Path, findings: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_sanitizer(tmp_path, f"{DONE}\n========= ERROR SUMMARY: 0 errors")
    monkeypatch.setattr(sanitizer, "find_sanitizer", lambda: program)
    sanitizer.run(findings)
    assert not findings.failed
    assert set(found(findings)["runs"]) == {
        f"{tool} {backend}" for tool in ("memcheck", "racecheck", "initcheck") for backend in ("cuda", "triton")
    }


def test_sanitizer_section_with_findings(tmp_path: Path, findings: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "========= Invalid __global__ write of size 4 bytes\n=========     at pyramid_pool_bwd_nchw_kernel+0x10"
    program = fake_sanitizer(tmp_path, f"{error}\n{DONE}\n========= ERROR SUMMARY: 1 error", code=3)
    monkeypatch.setattr(sanitizer, "find_sanitizer", lambda: program)
    sanitizer.run(findings)
    problems = found(findings)["problems"]
    assert len(problems) == 6
    assert "memcheck on cuda" in problems[0]
    assert "pyramid_pool_bwd_nchw_kernel" in problems[0]


def test_sanitizer_section_without_the_program(findings: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "find_sanitizer", lambda: None)
    sanitizer.run(findings)
    assert "compute-sanitizer is neither in CUDA_HOME" in found(findings)["problems"][0]


# ---- bench ----------------------------------------------------------------------------------------------------------


def fake_cases(values: dict[str, float]) -> list[Case]:
    """A case for each operator, whose second peer gives a value that should be 1."""

    def case(operator: str, value: float) -> Case:
        def build(peer: str) -> Any:
            return lambda: (torch.full((4,), 1.0 if peer == "eager" else value),)

        return Case(operator, {"shape": "4"}, "cpu", ("eager", "pspnet_fast"), build, Floor(8, 8), 1e-3)

    return [case(*item) for item in values.items()]


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    values = {"right": 1.0, "wrong": 2.0}

    def chosen(device: str, *, quick: bool, only: Any) -> list[Case]:
        names = list(only) or list(values)
        return fake_cases({name: values[name] for name in names})

    monkeypatch.setattr(bench, "all_cases", chosen)
    monkeypatch.setattr(bench, "measure_ceilings", lambda device, quick: Ceilings(1.0, 1.0, 1.0, 1.0))
    return values


def test_bench_section(findings: Findings, cases: dict[str, float]) -> None:
    bench.run(findings)
    content = found(findings)
    assert [row["operator"] for row in content["rows"]] == ["right", "wrong"]
    assert all(row["ceilings"] == content["ceilings"] for row in content["rows"])
    assert content["problems"] == ["wrong/4/cpu: pspnet_fast: differs from eager by 1.0, allowed 0.001"]


def test_bench_section_keeps_the_rows_of_other_operators(findings: Findings, cases: dict[str, float]) -> None:
    earlier = {
        "machine": MACHINE,
        "quick": False,
        "rows": [{"case": "wrong/4/cpu"}, {"case": "right/4/cpu", "old": True}],
    }
    (Path(findings.options.out) / ".bench.previous.json").write_text(json.dumps(earlier))
    findings.options.cases = "right"
    bench.run(findings)
    rows = found(findings)["rows"]
    assert rows[0] == {"case": "wrong/4/cpu"}
    assert (rows[1]["case"], "old" in rows[1], len(rows)) == ("right/4/cpu", False, 2)


def test_bench_section_ends_in_time(findings: Findings, cases: dict[str, float]) -> None:
    findings.options.limit = 40.0
    bench.run(findings)
    assert found(findings)["problems"] == ["no time was left for right/4/cpu", "no time was left for wrong/4/cpu"]


# ---- build ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("built", [["cpu"], []], ids=["cpu", "nothing"])
def test_dry_build_leaves_the_source_tree_alone(
    built: list[str], findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: list[Path] = []

    def fake_build(torch_info: object, output: Path, tree: Path) -> BuildResult:
        outputs.append(output)
        print("ptxas info : Compiling entry function 'pool_kernel' for 'sm_90'", file=build.sys.stderr)
        return BuildResult("2.99", built, {"cpu": "no compiler", "cuda": "no nvcc"}, "GNU 12")

    for name in ("TORCH_CUDA_ARCH_LIST", "CUDAFLAGS", "PATH"):  # the section has a process of its own and changes them
        monkeypatch.setenv(name, build.os.environ.get(name, ""))
    monkeypatch.setattr(build, "build_extension", fake_build)
    findings.options.device = "cpu"
    build.run(findings)
    assert build.ROOT not in outputs[0].parents
    content = found(findings)
    assert [kernel["name"] for kernel in content["kernels"]] == ["pool_kernel"]
    assert content["problems"] == ([] if built else ["cpu was not built: no compiler"])
