"""How much fits: the line through two measurements, what is tried, what is free; and files that grow row by row."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import measure, memory, provenance, store
from benchmarks.memory import Line, largest_tried
from benchmarks.store import ResultFile


def test_line_through_two_batches() -> None:
    line = Line.through({4: 1100, 2: 600})
    assert (line.fixed, line.each) == (100, 250)
    assert line.largest(1100) == 4
    assert line.largest(1099) == 3
    assert line.largest(600, least=2) == 2
    assert line.largest(599, least=2) == 0
    assert line.largest(10) == 0


def test_a_line_that_does_not_rise_has_no_largest_batch() -> None:
    assert Line.through({1: 500, 2: 500}).largest(10**9) is None


def test_a_line_needs_two_batches() -> None:
    with pytest.raises(ValueError, match=r"two batch sizes, not at \[2\]"):
        Line.through({2: 600})


@pytest.mark.parametrize(
    ("computed", "real", "expected"),
    [
        (10, 10, {"fits": 10, "fails": 11}),
        (10, 12, {"fits": 12, "fails": 13}),
        (10, 8, {"fits": 8, "fails": 9}),
        (10, 99, {"fits": 13, "fails": None}),
        (10, 0, {"fits": None, "fails": 7}),
        (1, 0, {"fits": None, "fails": 1}),
        (320, 335, {"fits": 330, "fails": 340}),
    ],
)
def test_batches_around_the_computed_one_are_tried(computed: int, real: int, expected: dict[str, int | None]) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= real

    assert largest_tried(fits, computed) == expected
    assert tried[0] == computed
    assert len(tried) <= 4


def test_available_memory_is_some_of_this_machines() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < memory.available_bytes("cpu") <= int(total.split()[1]) * 1024


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = memory.available_bytes("cpu")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 400000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes("cpu") == pytest.approx(unlimited, rel=0.5)
    (tmp_path / "memory.max").write_text("5000000\n")
    assert memory.available_bytes("cpu") == 2_400_000


# ---- result files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(store, "machine", lambda: {"device": "here", "commit": "a", "date": "today"})
    return tmp_path / "x.json"


def opened(*, resume: bool = False) -> ResultFile:
    return ResultFile("x", lambda row: row["n"], resume=resume)


def test_a_row_is_on_disk_at_once(results: Path) -> None:
    file = opened()
    file.add({"n": 1, "value": 5})
    file.add({"n": 2, "value": 6, "failures": {"eager": "wrong"}})
    assert json.loads(results.read_text()) == {"machine": file.machine, "rows": file.rows}
    file.add({"n": 1, "value": 7})
    assert [row["value"] for row in json.loads(results.read_text())["rows"]] == [7, 6]
    assert file.wrong() == ["2"]


def test_only_rows_of_this_machine_and_these_sources_are_resumed(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().add({"n": 1})
    assert 1 not in opened()
    assert 1 in opened(resume=True)
    monkeypatch.setattr(store, "machine", lambda: {"device": "here", "commit": "a", "date": "tomorrow"})
    assert 1 in opened(resume=True)
    monkeypatch.setattr(store, "machine", lambda: {"device": "here", "commit": "b", "date": "today"})
    assert 1 not in opened(resume=True)


def test_without_a_name_nothing_is_written(results: Path) -> None:
    file = ResultFile(None, lambda row: row["n"])
    file.add({"n": 1})
    assert len(file.rows) == 1
    assert not results.exists()


def test_written_results_do_not_make_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    commit = provenance.commit.__wrapped__  # not the cached one of this tree
    assert commit() == "unknown"

    def git(*arguments: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    files = [tmp_path / "kernel.cpp", tmp_path / "benchmarks" / "results" / "x.json", tmp_path / "README.md"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    clean = commit()
    assert len(clean) == 12
    for file in files[1:]:
        file.write_text("new")
    assert commit() == clean
    files[0].write_text("new")
    assert commit() == f"{clean}-dirty"
