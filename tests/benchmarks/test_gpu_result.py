"""The GPU command's result: what belongs together, what is kept in the repository, which kernels count as verified."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_result
from benchmarks.gpu import SECTIONS
from benchmarks.results import write_json

MACHINE = {"device": "NVIDIA Test", "digest": {"cuda": "a", "triton": "b"}, "driver": "1.2", "commit": "c0ffee",
           "date": "2026-01-02", "torch": "2.99", "triton": "3.9"}  # fmt: skip
COUNTS = {name: {"passed": 5, "failed": 0, "skipped": 1} for name in ("cuda", "triton")}


def write_section(out: Path, name: str, age: float = 0.0, **content: Any) -> None:
    path = out / f"{name}.json"
    write_json(path, {"status": "passed", "seconds": 1.0, "problems": [], "machine": MACHINE, **content})
    os.utime(path, (1e9 - age, 1e9 - age))


OTHERS = [{"device": "another"}, {"digest": {"cuda": "x", "triton": "b"}}, {"commit": "x"}]


@pytest.mark.parametrize("change", [{}, *OTHERS], ids=str)
def test_sections_and_rows_of_one_device_and_its_kernels_belong_together(tmp_path: Path, change: Any) -> None:
    write_section(tmp_path, "large", age=100, machine={**MACHINE, **change})
    write_section(tmp_path, "bench")
    row = {"operator": "x", "ratio": {"eager": 2.0}}
    rows = [{**row, "machine": 0}, {**row, "operator": "y", "machine": 1}]
    write_json(tmp_path / "operators_gpu.json", {"machines": [MACHINE, {**MACHINE, **change}], "rows": rows})
    found = gpu_result.assembled(tmp_path, list(SECTIONS))
    kept = change in ({}, {"commit": "x"})
    assert list(found["sections"]) == (["large", "bench"] if kept else ["bench"])
    assert found["left_out"] == ([] if kept else ["large"])
    assert [row["operator"] for row in found["rows"]] == (["x", "y"] if kept else ["x"])
    text = gpu_result.summary(found)
    assert "x 2.00x" in text
    assert ("left out" in text) == (not kept)


@pytest.mark.parametrize("change", [{}, *OTHERS], ids=str)
@pytest.mark.parametrize("age", [-100, 100])
def test_tests_of_a_back_end_stand_by_themselves(tmp_path: Path, age: int, change: Any) -> None:
    for name in COUNTS:
        write_section(tmp_path, name, age=age, machine={**MACHINE, **change}, counts=COUNTS[name])
    write_section(tmp_path, "bench")
    found = gpu_result.assembled(tmp_path, list(SECTIONS))
    kept = [] if "device" in change else list(COUNTS)
    assert (list(found["tests"]), found["machine"]) == (kept, MACHINE)
    assert all(f"tests on {name}: 5 passed, 0 failed, 1 skipped" in gpu_result.summary(found) for name in kept)


def test_save_keeps_the_result_and_enters_the_device(tmp_path: Path) -> None:
    """The sanitizer ran on the CUDA kernels as they are, and on others of Triton."""
    write_section(tmp_path, "cuda", counts=COUNTS["cuda"])
    earlier = {**MACHINE, "commit": "earlier", "digest": {**MACHINE["digest"], "triton": "z"}}
    write_section(tmp_path, "triton", machine=earlier, counts=COUNTS["triton"])
    names = [f"{tool} {backend}" for backend in COUNTS for tool in ("memcheck", "initcheck")]
    write_section(tmp_path, "sanitizer", runs={name: {"problems": ["x"] * ("init" in name)} for name in names})
    found = gpu_result.assembled(tmp_path, list(SECTIONS))
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
    found, verified = gpu_result.assembled(tmp_path, list(SECTIONS)), tmp_path / "verified.json"
    verified.write_text(json.dumps([{"device": "NVIDIA Test", "commit": "x", "digest": {"triton": "b"}}]))
    gpu_result.save(found, tmp_path / "results", verified)
    assert [list(entry["digest"]) for entry in json.loads(verified.read_text())] == [[name] for name in entered]


def test_no_result_of_a_cpu_is_kept(tmp_path: Path) -> None:
    write_section(tmp_path, "cuda", machine={**MACHINE, "driver": None}, counts=COUNTS["cuda"])
    with pytest.raises(ValueError, match="no result of a GPU"):
        gpu_result.save(
            gpu_result.assembled(tmp_path, list(SECTIONS)), tmp_path / "results", tmp_path / "verified.json"
        )


@pytest.mark.parametrize(
    ("commit", "digest", "expected"),
    [("abc", "same", "abc"), ("unknown", "same", "123-dirty"), ("unknown", "other", "unknown")],
)
def test_commit_of_a_copy_without_git(commit: str, digest: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_result.provenance, "digests", lambda: {"cuda": "same"})
    monkeypatch.setattr(gpu_result.provenance, "commit", lambda: "123-dirty")
    assert gpu_result.known({"commit": commit, "digest": {"cuda": digest}})["commit"] == expected
