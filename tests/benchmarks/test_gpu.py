"""The GPU command: sections that fail, hang and crash; the reports it reads."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import SECTIONS, Section, run_section
from benchmarks.gpu_reports import count_junit, own_kernels, read_sanitizer


def run(tmp_path: Path, *codes: str, limit: float = 30.0, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """A section of Python programs."""
    commands = [[sys.executable, "-c", code] for code in codes]
    section = Section(commands, lambda log: {"problems": [], "log": log, **(found or {})}, {"SPECIAL": "7"})
    return run_section("tests", section, tmp_path, limit, "cpu")


def test_section_prints_logs_and_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run(tmp_path, "print('compiling')", "import os, sys; print(os.environ['SPECIAL'], file=sys.stderr)")
    assert (ended["status"], ended["log"]) == ("passed", "compiling\n7\n")
    assert json.loads((tmp_path / "tests.json").read_text()) == ended
    assert "compiling\n" in capfd.readouterr().out
    assert {"device", "torch", "digest", "commit"} <= set(ended["machine"])


def test_a_failing_command_fails_the_section_and_stops_no_other(tmp_path: Path) -> None:
    ended = run(tmp_path, "raise SystemExit(3)", "print('second')")
    assert (ended["status"], ended["problems"], ended["log"]) == ("failed", ["exit codes [3, 0]"], "second\n")
    ended = run(tmp_path, "raise SystemExit(1)", found={"problems": ["3 tests failed"]})
    assert ended["problems"] == ["3 tests failed"]
    missing = Section([], lambda log: {"problems": [(tmp_path / "absent.xml").read_text()]})
    assert "no report" in run_section("tests", missing, tmp_path, 1.0, "cpu")["problems"][0]


def test_limit_ends_a_section_and_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program has a child that would outlive it, and ignores SIGTERM."""
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    started = time.monotonic()
    ended = run(tmp_path, code, "print('never')", limit=1.5)
    assert time.monotonic() - started < 20
    assert ended["status"] == "out of time"
    assert "never" not in ended["log"]
    child = int(ended["log"].split()[0])
    for _ in range(100):  # a killed child whose parent is gone may wait to be reaped by init
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child lives")


# ---- the command -----------------------------------------------------------------------------------------------------


def test_sections_are_chosen_in_their_order(tmp_path: Path) -> None:
    assert gpu.names("cuda,build") == ["build", "cuda"]
    assert gpu.names("none") == []
    with pytest.raises(argparse.ArgumentTypeError, match="no section speed; choose from build, cuda, triton, cpu"):
        gpu.names("build,speed")
    assert gpu.parse(["--out", str(tmp_path)]).only == [name for name in SECTIONS if name != "cpu"]
    assert gpu.parse(["--out", str(tmp_path), "--device=cpu"]).only == ["cpu", "bench", "train"]


def test_a_dry_run_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(["--out", str(tmp_path), "--device=cpu", "--save"])
    assert "is a dry run" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--device=cpu"], ["--cases=psp_head"]], ids=str)
def test_commands_exist(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    given = gpu.parse(["--out", str(tmp_path), *options])
    for name, make in SECTIONS.items():
        for command in make(given).commands:
            assert all((gpu.ROOT / word).exists() for word in command if word.startswith("tests/")), (name, command)
            assert str(tmp_path) in " ".join(command) or name == "build"
    (command,) = gpu.bench(given).commands
    assert (f"--save={tmp_path}" in command) is (options in ([], ["--cases=psp_head"]))
    assert any("psp_head" in word for word in command) is ("--cases=psp_head" in options)


def test_exit_code_is_that_of_the_sections_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(code: str) -> Any:
        return lambda options: Section([[sys.executable, "-c", code]])

    monkeypatch.setattr(gpu, "SECTIONS", {"cpu": fake("raise SystemExit(1)"), "bench": fake(""), "train": fake("")})
    out = ["--out", str(tmp_path), "--device=cpu"]
    assert gpu.main([*out, "--only=cpu,bench"]) == 1
    assert gpu.main([*out, "--only=train"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name: section["status"] for name, section in result["sections"].items()} == {
        "cpu": "failed", "bench": "passed", "train": "passed",
    }  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here; --device cpu makes a dry run"):
        gpu.main(["--out", str(tmp_path), "--only=bench"])


# ---- reports ---------------------------------------------------------------------------------------------------------

JUNIT = """<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="9"/></testsuites>"""


def test_junit_counts(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert count_junit(tmp_path / "junit.xml") == {"passed": 5, "failed": 2, "skipped": 2}
    assert count_junit(tmp_path / "absent.xml") == {"passed": 0, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(("failed", "passed", "clean"), [(0, 3, True), (1, 3, False), (0, 0, False)])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_back_end_must_pass(backend: str, failed: int, passed: int, clean: bool, tmp_path: Path) -> None:
    section = SECTIONS[backend](gpu.parse(["--out", str(tmp_path), "--device=cuda"]))
    suite = f'<testsuite errors="0" failures="{failed}" skipped="0" tests="{passed + failed}"/>'
    (tmp_path / f"tests_{backend}.xml").write_text(suite)
    found = section.read("")
    assert (not found["problems"]) is clean
    assert found["counts"] == {"passed": passed, "failed": failed, "skipped": 0}
    assert section.environment["PSPNET_FAST_EXPECT_BACKENDS"] == backend


OURS = (
    "========= Invalid __global__ read of size 4 bytes\n=========     at void pyramid_pool_bwd_nchw_kernel<float>+0x120"
)
THEIRS = "========= Uninitialized __global__ memory read\n=========     at void cublas_gemm<float>(const T1 *)+0x40"
READER = "========= Uninitialized __global__ memory read\n=========     at void pyramid_conv_add_kernel<__half>+0x40"
UNWRITTEN = "========= Uninitialized __global__ memory read\n=========     at void cross_entropy_kernel<float>+0x40"
RACE = "========= Error: Race reported between Write access at pyramid_pool_bwd_nchw_kernel+0x80 in pool.cu:40"
PASSED = '<testsuite tests="1"/>'
FAILED = '<testsuite tests="1" failures="1"/>'


VERDICTS = {
    "memcheck": ("", "ERROR SUMMARY: 0 errors", PASSED, True),
    "racecheck": ("", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", PASSED, True),
    "ours": (OURS, "ERROR SUMMARY: 1 error", PASSED, False),
    "race": (RACE, "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", PASSED, False),
    "a library's": (THEIRS, "ERROR SUMMARY: 1 error", PASSED, True),
    "of a library's result": (READER, "ERROR SUMMARY: 1 error", PASSED, True),
    "unwritten": (UNWRITTEN, "ERROR SUMMARY: 1 error", PASSED, False),
    "of unknown origin": ("", "ERROR SUMMARY: 2 errors", PASSED, False),
    "the program crashed": ("", "ERROR SUMMARY: 0 errors", "", False),
    "failed test": ("", "ERROR SUMMARY: 0 errors", FAILED, False),
    "the tool crashed": ("", "", PASSED, False),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_sanitizer_verdict(verdict: str, tmp_path: Path) -> None:
    found, summary, junit, clean = VERDICTS[verdict]
    report, xml = tmp_path / "report.txt", tmp_path / "report.xml"
    report.write_text(f"{found}\n========= {summary}\n")
    if junit:
        xml.write_text(junit)
    read = read_sanitizer(report, xml)
    assert (not read["problems"]) is clean
    assert (read["ours"], read["others"]) == (found in (OURS, RACE, UNWRITTEN), found in (THEIRS, READER))


def test_own_kernels_are_found() -> None:
    """One whose launch bounds are computed among them, and one of Triton."""
    assert {"pyramid_pool_bwd_nchw_kernel", "cross_entropy_kernel", "pyramid_conv_fwd_kernel"} < set(own_kernels())


def test_sanitizer_is_looked_for_in_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.find_sanitizer() == str(program)
    commands = gpu.sanitizer(gpu.parse(["--out", str(tmp_path)])).commands
    assert len(commands) == 6
    assert commands[1][:3] == [str(program), "--tool", "racecheck"]
