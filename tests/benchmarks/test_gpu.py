"""The GPU command: sections that fail, hang and crash; the reports it reads; what it keeps, and counts as verified."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_result
from benchmarks.gpu import SECTIONS, Section, run_section
from benchmarks.gpu_result import read_sanitizer
from benchmarks.results import write_json


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


def test_sections_are_chosen_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.names("cuda,build") == ["build", "cuda"]
    assert gpu.names("none") == []
    with pytest.raises(argparse.ArgumentTypeError, match="no section speed; choose from build, cuda, triton, cpu"):
        gpu.names("build,speed")
    assert gpu.parse(["--out", str(tmp_path)]).only == [name for name in SECTIONS if name != "cpu"]
    assert gpu.parse(["--out", str(tmp_path), "--device=cpu"]).only == ["cpu", "bench", "train"]
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


@pytest.mark.parametrize(
    ("suite", "counts", "clean"),
    [
        ('errors="0" failures="0" skipped="0" tests="3"', (3, 0, 0), True),
        ('errors="1" failures="1" skipped="2" tests="9"', (5, 2, 2), False),
        ('errors="0" failures="0" skipped="4" tests="4"', (0, 0, 4), False),
        ("", (0, 0, 0), False),
    ],
    ids=["passed", "failed", "skipped", "no report"],
)
@pytest.mark.parametrize("name", ["cuda", "triton", "bench"])
def test_every_back_end_must_pass(name: str, suite: str, counts: tuple[int, ...], clean: bool, tmp_path: Path) -> None:
    """Benchmarks may all be skipped."""
    section = SECTIONS[name](gpu.parse(["--out", str(tmp_path), "--device=cuda"]))
    if suite:
        path = tmp_path / ("bench.xml" if name == "bench" else f"tests_{name}.xml")
        path.write_text(f"<testsuites><testsuite {suite}/></testsuites>")
    found = section.read("")
    assert tuple(found["counts"].values()) == counts
    assert (not found["problems"]) is (clean or (name == "bench" and not counts[1]))
    assert section.environment.get("PSPNET_FAST_EXPECT_BACKENDS", "bench") == name


FOUND = "========= {} __global__ memory read\n=========     at void {}+0x40"
# The launch bounds of this kernel are computed, so that its name is not the first word with a bracket behind it.
OURS = FOUND.format("Invalid", "pyramid_pool_bwd_nchw_kernel<float>")
THEIRS = FOUND.format("Uninitialized", "cublas_gemm<float>(const T1 *)")
READER = FOUND.format("Uninitialized", "pyramid_conv_add_kernel<__half>")
UNWRITTEN = FOUND.format("Uninitialized", "cross_entropy_kernel<float>")
TRITON = FOUND.format("Invalid", "pyramid_conv_fwd_kernel")
RACE = "========= Error: Race reported between Write access at pyramid_pool_bwd_nchw_kernel+0x80 in pool.cu:40"
PASSED = '<testsuite tests="1"/>'
FAILED = '<testsuite tests="1" failures="1"/>'
VERDICTS = {
    "memcheck": ("", "ERROR SUMMARY: 0 errors", PASSED, True),
    "racecheck": ("", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", PASSED, True),
    "ours": (OURS, "ERROR SUMMARY: 1 error", PASSED, False),
    "Triton's": (TRITON, "ERROR SUMMARY: 1 error", PASSED, False),
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
    assert (read["ours"], read["others"]) == (found in (OURS, TRITON, RACE, UNWRITTEN), found in (THEIRS, READER))


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


# ---- the result ------------------------------------------------------------------------------------------------------

MACHINE = {"device": "NVIDIA Test", "digest": {"cuda": "a", "triton": "b"}, "driver": "1.2", "commit": "c0ffee",
           "date": "2026-01-02", "torch": "2.99", "triton": "3.9"}  # fmt: skip
COUNTS = {name: {"passed": 5, "failed": 0, "skipped": 1} for name in ("cuda", "triton")}


def write_section(out: Path, name: str, age: float = 0.0, **content: Any) -> None:
    path = out / f"{name}.json"
    write_json(path, {"status": "passed", "seconds": 1.0, "problems": [], "machine": MACHINE, **content})
    os.utime(path, (1e9 - age, 1e9 - age))


def assembled(out: Path) -> dict[str, Any]:
    return gpu_result.assembled(out, list(SECTIONS))


OTHER_KERNELS = {"digest": {"cuda": "x", "triton": "b"}}


@pytest.mark.parametrize("age", [-100, 100])
@pytest.mark.parametrize("change", [{}, {"commit": "x"}, {"device": "another"}, OTHER_KERNELS], ids=str)
def test_one_device_and_its_kernels_belong_together(tmp_path: Path, change: dict[str, Any], age: int) -> None:
    """The tests of a back end stand by themselves, on the same device."""
    other = {**MACHINE, **change}
    write_section(tmp_path, "large", age=200, machine=other)
    for name in COUNTS:
        write_section(tmp_path, name, age=age, machine=other, counts=COUNTS[name])
    write_section(tmp_path, "bench")
    row = {"operator": "x", "ratio": {"eager": 2.0}}
    rows = [{**row, "machine": 0}, {**row, "operator": "y", "machine": 1}]
    write_json(tmp_path / "operators_gpu.json", {"machines": [MACHINE, other], "rows": rows})
    found = assembled(tmp_path)
    same_kernels = change in ({}, {"commit": "x"})
    tests, large = [] if "device" in change else list(COUNTS), ["large"] if same_kernels else []
    assert (found["machine"], list(found["tests"])) == (MACHINE, tests)
    assert list(found["sections"]) == [*tests, *large, "bench"]
    assert sorted(found["left_out"]) == sorted({"large", *COUNTS} - {*tests, *large})
    assert [row["operator"] for row in found["rows"]] == (["x", "y"] if same_kernels else ["x"])
    text = gpu_result.summary(found)
    assert text.count("left out") == len(found["left_out"])
    assert all(line in text for line in ("x 2.00x", *(f"{name}: 5 passed, 0 failed, 1 skipped" for name in tests)))


def test_save_keeps_the_result_and_enters_the_device(tmp_path: Path) -> None:
    """The sanitizer ran on the CUDA kernels as they are, and on others of Triton."""
    write_section(tmp_path, "cuda", counts=COUNTS["cuda"])
    earlier = {**MACHINE, "commit": "earlier", "digest": {**MACHINE["digest"], "triton": "z"}}
    write_section(tmp_path, "triton", machine=earlier, counts=COUNTS["triton"])
    names = [f"{tool} {backend}" for backend in COUNTS for tool in ("memcheck", "initcheck")]
    write_section(tmp_path, "sanitizer", runs={name: {"problems": ["x"] * ("init" in name)} for name in names})
    found = assembled(tmp_path)
    verified = tmp_path / "verified.json"
    old = {"device": "NVIDIA Test", "commit": "x", "digest": {"cuda": "z", "triton": "z"}}
    verified.write_text(json.dumps([old, {**old, "device": "Another", "commit": "kept"}]))
    kept, entered = gpu_result.save(found, tmp_path / "results", verified)
    assert kept.name == "gpu_nvidia_test.json"
    assert json.loads(kept.read_text())["sections"]["cuda"]["counts"] == COUNTS["cuda"]
    other, *entries = json.loads(entered.read_text())
    assert other["commit"] == "kept"
    assert [(entry["commit"], entry["digest"], entry["sanitizer"]) for entry in entries] == [
        ("c0ffee", {"cuda": "a"}, ["memcheck cuda"]),
        ("earlier", {"triton": "z"}, []),
    ]
    assert all((entry["device"], entry["date"]) == ("NVIDIA Test", "2026-01-02") for entry in entries)


NONE = {"passed": 0, "failed": 0, "skipped": 9}


@pytest.mark.parametrize(
    ("counts", "entered"),
    [
        ({**COUNTS, "cuda": NONE}, ["triton"]),  # out of time, say
        ({**COUNTS, "triton": {**COUNTS["triton"], "failed": 1}}, ["cuda"]),
        ({"cuda": COUNTS["cuda"]}, ["cuda", "triton"]),
        ({"cuda": NONE, "triton": NONE}, []),
    ],
    ids=["cuda skipped", "triton failed", "no triton", "skipped"],
)
def test_kernels_are_verified_with_all_their_tests(tmp_path: Path, counts: dict[str, Any], entered: list[str]) -> None:
    """Triton's were before, and stay so unless they are tested again."""
    for name, own in counts.items():
        write_section(tmp_path, name, status="failed", counts=own)
    found, verified = assembled(tmp_path), tmp_path / "verified.json"
    verified.write_text(json.dumps([{"device": "NVIDIA Test", "commit": "x", "digest": {"triton": "b"}}]))
    gpu_result.save(found, tmp_path / "results", verified)
    assert [list(entry["digest"]) for entry in json.loads(verified.read_text())] == [[name] for name in entered]


def test_no_result_of_a_cpu_is_kept(tmp_path: Path) -> None:
    write_section(tmp_path, "cuda", machine={**MACHINE, "driver": None}, counts=COUNTS["cuda"])
    found = assembled(tmp_path)
    with pytest.raises(ValueError, match="no result of a GPU"):
        gpu_result.save(found, tmp_path / "results", tmp_path / "verified.json")


@pytest.mark.parametrize(
    ("commit", "digest", "expected"),
    [("abc", "same", "abc"), ("unknown", "same", "123-dirty"), ("unknown", "other", "unknown")],
)
def test_commit_of_a_copy_without_git(commit: str, digest: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_result.provenance, "digests", lambda: {"cuda": "same"})
    monkeypatch.setattr(gpu_result.provenance, "commit", lambda: "123-dirty")
    assert gpu_result.known({"commit": commit, "digest": {"cuda": digest}})["commit"] == expected
