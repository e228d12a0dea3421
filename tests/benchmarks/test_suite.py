"""The GPU suite's frame: sections as processes that print, fail, hang and crash; which ones run; the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import result as result_module
from benchmarks.gpu import section as section_module
from benchmarks.gpu import suite
from benchmarks.gpu.section import Findings
from benchmarks.gpu.suite import SECTIONS, Section, run_section

MACHINE = {"device": "NVIDIA Test", "digest": {"cuda": "a", "triton": "b"}, "driver": "1.2", "commit": "c0ffee"}


def script(name: str, code: str, limit: float = 30.0) -> Section:
    return Section(name, [sys.executable, "-c", code], limit)


def leaves(out: Path, name: str, content: dict[str, Any], then: str = "") -> str:
    """Code that writes a section's findings, as benchmarks.gpu.section does."""
    path, text = str(out / f"{name}.json"), json.dumps(content)
    return f"import pathlib, sys; pathlib.Path({path!r}).write_text({text!r}); {then}"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_passed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = {"problems": [], "machine": MACHINE, "value": 7}
    ended = run_section(script("build", leaves(tmp_path, "build", content, "print('compiling')")), tmp_path)
    assert (ended["status"], ended["exit_code"], ended["value"]) == ("passed", 0, 7)
    assert read(tmp_path / "build.json") == ended
    assert (tmp_path / "build.log").read_text() == "compiling\n"
    assert "compiling\n" in capfd.readouterr().out


def test_failed_keeps_what_was_found(tmp_path: Path) -> None:
    content = {"problems": ["3 tests failed"], "backends": {"cuda": {"passed": 1}}}
    ended = run_section(script("tests", leaves(tmp_path, "tests", content, "sys.exit(1)")), tmp_path)
    assert (ended["status"], ended["problems"], ended["backends"]) == (
        "failed",
        ["3 tests failed"],
        content["backends"],
    )


def test_crash_before_the_first_finding(tmp_path: Path) -> None:
    ended = run_section(script("train", "import os; os.abort()"), tmp_path)
    assert ended["status"] == "failed"
    assert ended["problems"] == ["train ended with exit code -6"]


def test_standard_error_is_in_the_log(tmp_path: Path) -> None:
    run_section(script("train", "raise RuntimeError('no luck')"), tmp_path)
    assert "RuntimeError: no luck" in (tmp_path / "train.log").read_text()


def test_limit_ends_a_section_and_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The section has a child that would outlive it, and ignores being asked to end."""
    monkeypatch.setattr(suite, "GRACE", 0.5)
    code = leaves(tmp_path, "bench", {"problems": [], "rows": [1]}) + (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    started = time.monotonic()
    ended = run_section(script("bench", code, limit=1.5), tmp_path)
    assert time.monotonic() - started < 20
    assert (ended["status"], ended["exit_code"], ended["rows"]) == ("out of time", None, [1])
    assert ended["problems"] == ["out of time"]
    child = int((tmp_path / "bench.log").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(_not_a_zombie(child), 0)


def _not_a_zombie(pid: int) -> int:
    """A killed child whose parent is gone may wait to be reaped by init: dead all the same."""
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            raise ProcessLookupError
        time.sleep(0.05)
    return pid


def test_findings_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "tests.json").write_text(json.dumps({"problems": [], "backends": {"cuda": {"passed": 9}}}))
    ended = run_section(script("tests", "raise SystemExit(2)"), tmp_path)
    assert "backends" not in ended
    assert ended["status"] == "failed"
    assert sorted(os.listdir(tmp_path)) == ["tests.json", "tests.log"]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_sections_are_chosen_in_their_order() -> None:
    assert command.names("tests,build") == ["build", "tests"]
    assert command.names("none") == []
    with pytest.raises(argparse.ArgumentTypeError, match="no section speed; choose from build, tests, sanitizer"):
        command.names("build,speed")


def test_all_sections_by_default(tmp_path: Path) -> None:
    assert command.parse(["--out", str(tmp_path)]).only == list(SECTIONS)


def test_a_dry_run_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--out", str(tmp_path), "--device", "cpu", "--save"])
    assert "a dry run" in capsys.readouterr().err


def test_options_reach_the_section(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--camvid", str(tmp_path), "--cases", "psp_head"]
    section = command.section_of("bench", command.parse([*arguments, "--limit", "77"]))
    given = section_module.parse(list(section.command[3:]))
    assert (given.name, given.out, given.device, given.quick) == ("bench", tmp_path, "cpu", True)
    assert (given.camvid, given.cases, given.limit, section.limit) == (tmp_path, "psp_head", 77.0, 77.0)
    assert section.environment == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def fake_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sections that end at once; "tests" fails."""

    def fake(name: str, options: argparse.Namespace) -> Section:
        end = "sys.exit(1)" if name == "tests" else ""
        return script(name, leaves(options.out, name, {"problems": [], "machine": MACHINE}, end))

    monkeypatch.setattr(command, "section_of", fake)
    return tmp_path


def test_a_failing_section_stops_no_other(fake_sections: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(fake_sections)]) == 1
    found = read(fake_sections / "result.json")
    assert {name: section["status"] for name, section in found["sections"].items()} == {
        name: "failed" if name == "tests" else "passed" for name in SECTIONS
    }
    assert found["machine"] == MACHINE
    table = capfd.readouterr().out
    assert "NVIDIA Test" in table
    assert "tests ended with exit code 1" in table
    assert all((fake_sections / f"{name}.{kind}").is_file() for name in SECTIONS for kind in ("json", "log"))


def test_exit_code_is_that_of_the_sections_that_ran(fake_sections: Path) -> None:
    command.main(["--out", str(fake_sections), "--only", "tests"])
    assert command.main(["--out", str(fake_sections), "--only", "build,bench"]) == 0
    assert set(read(fake_sections / "result.json")["sections"]) == {"build", "tests", "bench"}


def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    options = command.parse(["--out", str(tmp_path), "--only", "train"])
    section = command.section_of("train", options)
    hidden = Section(section.name, section.command, section.limit, {"CUDA_VISIBLE_DEVICES": ""})
    ended = run_section(hidden, tmp_path)
    assert ended["status"] == "failed"
    assert ended["problems"] == ["torch sees no GPU here; --device cpu makes a dry run"]
    assert {"device", "torch", "digest", "commit", "nvcc"} <= set(ended["machine"])


# ---- what a section leaves ------------------------------------------------------------------------------------------


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Findings:
    monkeypatch.setattr(section_module, "gpu_machine", lambda: MACHINE)
    arguments = ["bench", "--out", str(tmp_path), "--limit", "100"]
    return Findings("bench", section_module.parse(arguments))


def test_findings_are_on_disk_at_once(findings: Findings, tmp_path: Path) -> None:
    findings.add(rows=[1, 2])
    assert read(tmp_path / "bench.json") == {"problems": [], "machine": MACHINE, "quick": False, "rows": [1, 2]}
    assert not findings.failed
    findings.problem("wrong")
    assert read(tmp_path / "bench.json")["problems"] == ["wrong"]
    assert findings.failed


def test_a_section_ends_before_its_limit(findings: Findings) -> None:
    assert 70 < findings.seconds_left < 80 + 1e-6


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, True), ({"device": "another"}, False), ({"digest": {"cuda": "x", "triton": "b"}}, False),
     ({"commit": "another"}, True)],
)  # fmt: skip
def test_previous_findings_of_the_same_kernels(
    findings: Findings, tmp_path: Path, change: dict[str, Any], kept: bool
) -> None:
    earlier = {"machine": {**MACHINE, **change}, "quick": False, "rows": [5]}
    (tmp_path / ".bench.previous.json").write_text(json.dumps(earlier))
    assert (findings.previous() == earlier) is kept


# ---- the result -----------------------------------------------------------------------------------------------------

BACKENDS = {name: {"passed": 5, "failed": 0, "skipped": 1} for name in ("cuda", "triton")}
FULL = {**MACHINE, "date": "2026-01-02", "torch": "2.99", "triton": "3.9"}


def write_section(out: Path, name: str, age: float, **content: Any) -> None:
    path = out / f"{name}.json"
    path.write_text(json.dumps({"status": "passed", "seconds": 1.0, "problems": [], "machine": FULL, **content}))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_sections_of_two_runs_belong_together(tmp_path: Path) -> None:
    write_section(tmp_path, "tests", age=100, backends=BACKENDS)
    write_section(tmp_path, "bench", age=0, rows=[{"operator": "x", "ratio": {"eager": 2.0}}])
    found = result_module.assembled(tmp_path, SECTIONS)
    assert list(found["sections"]) == ["tests", "bench"]
    assert (found["tests"], found["rows"][0]["operator"], found["left_out"]) == (BACKENDS, "x", {})
    assert "cuda 5 passed 0 failed 1 skipped" in result_module.summary(found)
    assert "x 2.00x" in result_module.summary(found)


@pytest.mark.parametrize("change", [{"device": "another"}, {"digest": {"cuda": "x", "triton": "b"}}], ids=str)
def test_sections_of_other_kernels_or_devices_are_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    write_section(tmp_path, "tests", age=100, machine={**FULL, **change}, backends=BACKENDS)
    write_section(tmp_path, "build", age=0)
    found = result_module.assembled(tmp_path, SECTIONS)
    assert list(found["sections"]) == ["build"]
    assert found["left_out"] == {"tests": f"{next(iter(change))} differs"}
    assert "left out" in result_module.summary(found)


def test_summary_of_a_crash(tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text(json.dumps({"status": "failed", "seconds": 2.0, "problems": ["no nvcc"]}))
    assert "no nvcc" in result_module.summary(result_module.assembled(tmp_path, SECTIONS))


def test_save_keeps_the_result_and_enters_the_device(tmp_path: Path) -> None:
    write_section(tmp_path, "tests", age=0, backends=BACKENDS)
    found = result_module.assembled(tmp_path, SECTIONS)
    verified = tmp_path / "verified.json"
    verified.write_text(
        json.dumps([{"device": "NVIDIA Test", "commit": "old"}, {"device": "Another", "commit": "kept"}])
    )
    kept, entered = result_module.save(found, tmp_path / "results", verified)
    assert kept.name == "gpu_nvidia_test.json"
    assert read(kept)["sections"]["tests"]["backends"] == BACKENDS
    other, entry = read(entered)
    assert other["commit"] == "kept"
    assert (entry["device"], entry["commit"], entry["date"]) == ("NVIDIA Test", "c0ffee", "2026-01-02")
    assert entry["digest"] == MACHINE["digest"]
    assert entry["sanitizer"] == "not run"


@pytest.mark.parametrize(
    "tests",
    [
        {"status": "failed", "backends": BACKENDS},
        {"status": "out of time", "backends": BACKENDS},
        {"backends": {"cuda": BACKENDS["cuda"]}},
        {"backends": {**BACKENDS, "triton": {"passed": 0, "failed": 0, "skipped": 9}}},
        {"backends": BACKENDS, "quick": True},
    ],
    ids=["failed", "out of time", "no triton", "triton skipped", "quick"],
)
def test_no_device_is_verified_without_all_its_tests(tmp_path: Path, tests: dict[str, Any]) -> None:
    write_section(tmp_path, "tests", age=0, **tests)
    found = result_module.assembled(tmp_path, SECTIONS)
    (kept,) = result_module.save(found, tmp_path / "results", tmp_path / "verified.json")
    assert kept.is_file()
    assert not (tmp_path / "verified.json").exists()


def test_no_result_of_a_cpu_is_kept(tmp_path: Path) -> None:
    write_section(tmp_path, "tests", age=0, machine={**FULL, "driver": None}, backends=BACKENDS)
    with pytest.raises(ValueError, match="no result of a GPU"):
        result_module.save(
            result_module.assembled(tmp_path, SECTIONS), tmp_path / "results", tmp_path / "verified.json"
        )


@pytest.mark.parametrize(
    ("told", "digest", "expected"),
    [("abc", "same", "abc"), ("unknown", "same", "123-dirty"), ("unknown", "other", "unknown")],
)
def test_commit_of_a_copy_without_git(told: str, digest: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_module.provenance, "digests", lambda: {"cuda": "same"})
    monkeypatch.setattr(result_module.provenance, "commit", lambda: "123-dirty")
    assert result_module.known_commit({"commit": told, "digest": {"cuda": digest}}) == expected
