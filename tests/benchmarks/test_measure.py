"""Time, memory, rates and result files."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import measure, results
from benchmarks.case import difference
from benchmarks.measure import in_new_process, interleaved, on_threads, peak_bytes, tensor_bytes, timing
from benchmarks.results import ResultFile


def test_all_variants_run_in_turn() -> None:
    order: list[str] = []
    variants = {name: functools.partial(order.append, name) for name in "ab"}
    assert {name: len(values) for name, values in interleaved(variants, 3).items()} == {"a": 3, "b": 3}
    assert "".join(order) == "ab" * 4
    assert len(interleaved(variants, 3, seconds=1e3)["a"]) == 100
    readings = iter([0.0, 9.0, 9.0, 9.5, 20.0, 20.25])
    assert interleaved({"a": order.clear}, 2, clock=readings.__next__) == {"a": [500.0, 250.0]}


def test_timing_is_median_and_percentiles() -> None:
    values = [float(value) for value in (5, 1, 4, 2, 3, 6, 7, 8, 9, 10, 11)]
    assert timing(values) == timing(values[::-1]) == {"median": 6.0, "p20": 3.0, "p80": 9.0, "rounds": 11}
    assert timing([0.000123456])["median"] == 0.0001235


def test_difference() -> None:
    x, labels = torch.tensor([3.0, 4.0]), torch.tensor([1, 2, 3, 4])
    assert difference((x, labels), (x, labels)) == 0
    assert difference((x + torch.tensor([0.0, 0.5]),), (x,)) == pytest.approx(0.1)
    assert difference((torch.tensor([1, 2, 3, 5]),), (labels,)) == 0.25
    assert difference((x * torch.nan,), (x,)) == torch.inf


def peak_of_64_mb(warm: bool) -> float:
    torch.set_num_threads(1)
    torch.ones(1 << 18).sum()  # the operators' code is read from the disk now, and does not count
    kept: list[torch.Tensor] = []

    def run() -> object:
        if not kept:
            torch.ones(200 << 18).sum()  # 200 MB the first time, and 48 that stay: they do not count
            kept.append(torch.ones(48 << 18))
        return torch.ones(64 << 18).sum()  # 64 MB each time

    return peak_bytes(lambda: run, "cpu", warm=warm) / 2**20


@pytest.mark.parametrize(("warm", "expected"), [(True, 64), (False, 200)])
def test_peak_memory_is_that_of_a_call(warm: bool, expected: int) -> None:
    resettable = os.access("/proc/self/clear_refs", os.W_OK)
    assert in_new_process(peak_of_64_mb, warm) == pytest.approx(expected if resettable else 200, abs=16)


def test_new_processes_get_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PSPNET_FAST_TEST", raising=False)
    assert in_new_process(os.getenv, "PSPNET_FAST_TEST", environment={"PSPNET_FAST_TEST": "7"}) == "7"
    assert "PSPNET_FAST_TEST" not in os.environ


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with on_threads(2):
        assert torch.get_num_threads() == 2
    with on_threads(None):
        assert torch.get_num_threads() == before


def layer(features: int) -> Callable[[], object]:
    """Forward and backward of a square matrix on 10 rows."""
    weight, x = torch.ones(features, features, requires_grad=True), torch.ones(10, features)

    def step() -> None:
        (x @ weight).sum().backward()
        weight.grad = None

    return step


def test_tensors_are_counted_without_computing() -> None:
    """At most there are the result's gradient, which is one number expanded, and the weights'."""
    assert tensor_bytes(functools.partial(layer, 400)) == pytest.approx(4 * 400 * 400, rel=0.05)


# ---- how much fits ---------------------------------------------------------------------------------------------------


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CGROUP", tmp_path)
    unlimited = measure.available_bytes("cpu")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < unlimited <= int(total.split()[1]) * 1024
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 400000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert measure.available_bytes("cpu") == pytest.approx(unlimited, rel=0.5)
    (tmp_path / "memory.max").write_text("5000000\n")
    assert measure.available_bytes("cpu") == 2_400_000


# ---- result files ----------------------------------------------------------------------------------------------------


def test_rows_are_on_disk_at_once_with_their_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x.json"

    def opened(commit: str, date: str = "today") -> ResultFile:
        monkeypatch.setattr(results, "machine", lambda device: {"device": "here", "commit": commit, "date": date})
        return ResultFile(path)

    file = opened("a")
    rows = [{"case": "one", "value": 5, "failures": {}}, {"case": "two", "value": 5, "failures": {}}]
    rows.append({"case": "three", "failures": {"eager": "wrong"}})
    for row in rows:
        file.add(row)
    assert json.loads(path.read_text()) == {"machines": [file.now], "rows": [{**row, "machine": 0} for row in rows]}

    again = opened("a", "tomorrow")
    assert [again.has(case) for case in ("one", "three", "four")] == [True, False, False]
    other = opened("b")
    assert not other.has("one")
    other.add({"case": "one", "value": 6, "failures": {}})
    stored = json.loads(path.read_text())
    assert [machine["commit"] for machine in stored["machines"]] == ["b", "a"]
    assert [(row["case"], row.get("value"), row["machine"]) for row in stored["rows"]] == [
        ("one", 6, 0), ("two", 5, 1), ("three", None, 1),
    ]  # fmt: skip
    for case in ("two", "three"):
        other.add({"case": case, "failures": {}})
    assert json.loads(path.read_text())["machines"] == [other.now]  # no row of the first one is left


def test_written_results_do_not_make_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() == "unknown"

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
    clean = results.commit()
    assert len(clean) == 12
    for file in files[1:]:
        file.write_text("new")
    assert results.commit() == clean
    files[0].write_text("new")
    assert results.commit() == f"{clean}-dirty"
