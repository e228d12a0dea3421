"""Scaling: its points, what is left out and why, and rows that are kept as they come."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, scaling
from benchmarks.case import EAGER, OURS
from benchmarks.scaling import AXES, OPERATORS, Point, middle, points

QUICK = ["--quick", "--rounds", "1", "--device", "cpu"]


@pytest.fixture
def peaks_asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No process for a peak, but the command lines that it would have had."""
    asked: list[list[str]] = []

    def peak(module: str, *arguments: str) -> int:
        asked.append([module, *arguments])
        options = scaling.parse(list(arguments))
        assert scaling.points(options.device, options.peak.split("/")[1], quick=options.quick, threads=1)
        return 1001 if options.peer == EAGER else 1002

    monkeypatch.setattr(scaling, "in_fresh_process", peak)
    return asked


def point(operator: str, axis: str, value: int) -> Point:
    (found,) = (p for p in points("cpu", axis, quick=True, threads=2) if (p.operator, p.value) == (operator, value))
    return found


def options(*arguments: str) -> argparse.Namespace:
    return scaling.parse([*QUICK, *arguments])


@pytest.mark.parametrize("quick", [False, True])
def test_points_differ_from_the_middle_in_their_axis_alone(quick: bool) -> None:
    for axis in AXES:
        found = points("cpu", axis, quick=quick, threads=2)
        assert {p.operator for p in found} == set(OPERATORS[:1] if axis == "classes" else OPERATORS)
        for p in found:
            changed = {
                name for name, value in vars(p.shape).items() if value != getattr(middle("cpu", quick=quick), name)
            }
            assert changed <= {axis}
            assert p.value == (p.threads if axis == "threads" else getattr(p.shape, axis))


def test_axes_span_what_they_promise() -> None:
    def span(axis: str) -> tuple[int, int]:
        values = [p.value for p in points("cpu", axis, quick=False, threads=2)]
        return min(values), max(values)

    assert [span(axis) for axis in AXES] == [(2, 1000), (1, 32), (257, 1025), (1, 2)]
    assert points("cuda", "threads", quick=False, threads=8) == []
    assert [p.value for p in points("cpu", "threads", quick=True, threads=6)[:3]] == [1, 2, 4]


def test_cases_have_the_points_shape() -> None:
    losses = points("cpu", "classes", quick=False, threads=2)[-1].case
    assert losses.labels["shape"] == "2x1000x60x60 -> 473x473"
    head = points("cpu", "size", quick=False, threads=2)[-1].case
    assert (head.operator, head.labels["shape"], head.peers) == ("psp_head", "2x512x129x129", (EAGER, OURS))


def test_needed_memory_is_above_what_was_measured() -> None:
    """Peak of eager at 2x150x60x60 -> 473x473: 1074 MB, of full-resolution logits with 268 MB a head."""
    (found,) = (p for p in points("cpu", "classes", quick=False, threads=2) if p.value == 150)
    assert found.needed_bytes(EAGER) == 5 * 4 * 2 * 150 * 473**2
    assert 1.07e9 < found.needed_bytes(EAGER) < 1.5e9
    assert found.needed_bytes(OURS) < found.needed_bytes(EAGER) / 4


def test_row_of_a_point(peaks_asked: list[list[str]]) -> None:
    row = scaling.measure(point("dual_cross_entropy", "classes", 7), options())
    assert (row["axis"], row["value"], row["operator"]) == ("classes", 7, "dual_cross_entropy")
    assert set(row["milliseconds"]) == {EAGER, OURS}
    assert row["peak_bytes"] == {EAGER: 1001, OURS: 1002}
    assert (row["skipped"], row["failures"]) == ({}, {})
    assert sorted(words[4] for words in peaks_asked) == sorted([EAGER, OURS])
    json.dumps(row)


def test_what_does_not_fit_is_not_tried(peaks_asked: list[list[str]]) -> None:
    p = point("dual_cross_entropy", "classes", 7)
    enough_for_ours = str(p.needed_bytes(OURS) / 1e9)
    row = scaling.measure(p, options("--memory", enough_for_ours))
    assert set(row["milliseconds"]) == set(row["peak_bytes"]) == {OURS}
    assert "needs about 0.000305 GB, and" in row["skipped"][EAGER]
    row = scaling.measure(p, options("--memory", "1e-9"))
    assert (set(row["skipped"]), row["milliseconds"], row["failures"]) == ({EAGER, OURS}, {}, {})
    assert len(peaks_asked) == 1


def test_one_image_cannot_train_the_head() -> None:
    row = scaling.measure(point("psp_head", "batch", 1), options())
    assert "cannot train on one image" in row["skipped"][EAGER]
    assert row["failures"] == {}


def test_a_peak_whose_process_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: str) -> int:
        raise subprocess.CalledProcessError(-9, "python")

    monkeypatch.setattr(scaling, "in_fresh_process", killed)
    row = scaling.measure(point("pyramid_pool", "batch", 2), options())
    assert row["peak_bytes"] == {}
    assert row["failures"][f"{EAGER}, memory"] == "its process ended with exit code -9"


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with scaling.on_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_peak_of_a_point() -> None:
    given = scaling.parse(["--peak", "pyramid_pool/batch/2", "--peer", OURS, *QUICK])
    assert scaling.peak_of(given) >= 0


def test_unknown_axis(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.parse(["--axes", "classes,depth"])
    assert "no axis depth; choose from classes, batch, size, threads" in capsys.readouterr().err


def test_rows_are_saved_as_they_come_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(scaling, "VALUES", scaling.QUICK_VALUES)
    monkeypatch.setattr(scaling, "middle", lambda device, *, quick: middle(device, quick=True))
    done: list[str] = []

    def measured(p: Point, _: argparse.Namespace) -> dict[str, Any]:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(p.id)
        return {"axis": p.axis, "value": p.value, "operator": p.operator, "skipped": {}, "failures": {}}

    monkeypatch.setattr(scaling, "measure", measured)
    with pytest.raises(KeyboardInterrupt):
        scaling.main(["--axes", "classes", "--device", "cpu"])
    saved = json.loads((tmp_path / "scaling_cpu_classes.json").read_text())
    assert [row["value"] for row in saved["rows"]] == [2]
    assert saved["machine"]["threads"] == torch.get_num_threads()

    done.clear()
    scaling.main(["--axes", "classes", "--device", "cpu", "--resume"])
    assert done == ["dual_cross_entropy/classes/7"]
    saved = json.loads((tmp_path / "scaling_cpu_classes.json").read_text())
    assert [row["value"] for row in saved["rows"]] == [2, 7]
    assert "classes = 7 (2 of 2)" in capsys.readouterr().out
