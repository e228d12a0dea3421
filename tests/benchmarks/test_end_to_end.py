"""End to end: what lies in memory beside a call, the largest batch from two measurements, and what a GPU tries."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import end_to_end, measure
from benchmarks.case import EAGER, OURS
from benchmarks.ceilings import Ceilings
from benchmarks.end_to_end import kept_bytes, setting
from tests.plain_pspnet import PlainPSPNet

CEILINGS = Ceilings(copy=100.0, read=80.0, float32=1000.0, bfloat16=4000.0)
TINY = ["--quick", "--size", "33", "--variants", f"{EAGER},{OURS}", "--device", "cpu", "--memory", "1,4"]


def options(*arguments: str) -> argparse.Namespace:
    return end_to_end.parse([*TINY, *arguments])


def fake_peak(module: str, *arguments: str) -> int:
    """100 MB, and 10 (ours) or 20 more for each image."""
    given = end_to_end.parse(list(arguments))
    assert (module, given.peak, given.size, len(given.layers)) == ("benchmarks.end_to_end", True, 33, 1)
    return 100_000_000 + given.batch * (10_000_000 if given.variants == [OURS] else 20_000_000)


def test_what_lies_beside_a_call() -> None:
    config = setting(options(), 18, 2)
    net = PlainPSPNet(layers=18, classes=19)
    weights = 4 * sum(p.numel() for p in net.parameters())
    statistics = sum(b.numel() * b.element_size() for b in net.buffers())
    assert kept_bytes("training", config) == (2 * weights + statistics, 33 * 33 * (3 * 4 + 8))
    assert kept_bytes("inference", config) == (weights + statistics, 33 * 33 * 3 * 4)


@pytest.mark.parametrize(("mode", "second"), [("training", 6), ("inference", 16)])
def test_row(mode: str, second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "in_fresh_process", fake_peak)
    row = end_to_end.measure(mode, 18, CEILINGS, options())
    assert (row["mode"], row["layers"], row["batch"], row["failures"]) == (mode, 18, 2, {})
    for peer in (EAGER, OURS):
        median = row["milliseconds"][peer]["median"]
        assert row["images_per_second"][peer] == pytest.approx(2000 / median, rel=1e-3)
    assert row["peak_bytes_at"][OURS] == {"2": 120_000_000, str(second): 100_000_000 + second * 10_000_000}
    assert row["peak_bytes"] == {EAGER: 140_000_000, OURS: 120_000_000}
    left = 4e9 - row["weights_bytes"] - 100_000_000
    assert row["largest_batch"]["4"] == {
        EAGER: left // (20_000_000 + row["image_bytes"]),
        OURS: left // (10_000_000 + row["image_bytes"]),
    }
    assert "largest_tried" not in row
    json.dumps(row)


def test_a_peak_whose_process_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(module: str, *arguments: str) -> int:
        if EAGER in arguments and "16" in arguments:
            raise subprocess.CalledProcessError(-9, "python")
        return fake_peak(module, *arguments)

    monkeypatch.setattr(end_to_end, "in_fresh_process", dies)
    row = end_to_end.measure("inference", 18, CEILINGS, options())
    assert set(row["largest_batch"]["4"]) == {OURS}
    assert row["failures"] == {f"{EAGER}, memory": "its process ended with exit code -9"}


def test_too_small_a_memory_holds_no_training_batch() -> None:
    row = {
        "peak_bytes_at": {EAGER: {"2": 300_000_000, "4": 500_000_000}}, "weights_bytes": 10**8, "image_bytes": 0,
    }  # fmt: skip
    line = end_to_end.line_of(row, EAGER)
    assert (line.fixed, line.each) == (2 * 10**8, 10**8)
    assert line.largest(4e8, end_to_end.LEAST["training"]) == 2
    assert line.largest(3e8, end_to_end.LEAST["training"]) == 0
    assert line.largest(3e8, end_to_end.LEAST["inference"]) == 1


def test_a_gpu_tries_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, float]] = []

    def tries(_: str, *arguments: str) -> bool:
        given = end_to_end.parse(list(arguments))
        asked.append((given.variants[0], given.batch, given.try_memory))
        return bool(given.batch <= 6)

    monkeypatch.setattr(end_to_end, "in_fresh_process", tries)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 10**9, 16 * 10**9))
    row = {"layers": 18, "mode": "training", "largest_batch": {"8": {EAGER: 5, OURS: 0}, "80": {EAGER: 70}}}
    assert end_to_end.tried(row, 8.0, options()) == {EAGER: {"fits": 6, "fails": 7}}
    assert asked == [(EAGER, batch, 8.0) for batch in (5, 6, 7)]
    assert end_to_end.tried(row, 80.0, options()) == {}


def test_worker_measures_one_peer() -> None:
    row = {"layers": 18, "mode": "inference"}
    arguments = end_to_end.worker_arguments(row, OURS, 1, options())
    assert end_to_end.worker(end_to_end.parse([*arguments, "--peak"])) >= 0


def test_defaults_depend_on_the_device() -> None:
    cpu, gpu = (end_to_end.parse(["--device", device]) for device in ("cpu", "cuda"))
    assert (cpu.layers, cpu.size, cpu.batch, cpu.dtype) == ([50, 101], 321, 2, "float32")
    assert (gpu.size, gpu.batch, gpu.dtype, gpu.layout) == (473, 16, "bfloat16", "channels_last")
    assert end_to_end.parse(["--device", "cpu", "--layers", "34", "--batch", "4"]).layers == [34]


def test_unknown_mode(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        end_to_end.parse(["--modes", "train"])
    assert "--modes: no train; choose from training, inference" in capsys.readouterr().err


def test_rows_are_saved_as_they_come_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(end_to_end, "measure_ceilings", lambda *_, **__: CEILINGS)
    done: list[tuple[int, str]] = []

    def measured(mode: str, layers: int, *_: Any) -> dict[str, Any]:
        done.append((layers, mode))
        return {"layers": layers, "mode": mode, "operator": mode, "failures": {}}

    monkeypatch.setattr(end_to_end, "measure", measured)
    end_to_end.main(["--device", "cpu", "--layers", "50", "--modes", "inference"])
    end_to_end.main(["--device", "cpu", "--resume"])
    assert done == [(50, "inference"), (50, "training"), (101, "training"), (101, "inference")]
    rows = json.loads((tmp_path / "end_to_end_cpu_321_19.json").read_text())["rows"]
    assert sorted((row["layers"], row["mode"]) for row in rows) == sorted(done)
