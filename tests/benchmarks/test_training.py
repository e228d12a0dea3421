"""Fused and plain training compared step by step; the auxiliary loss's runs are pairs, and can be stopped."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import aux_weight, compare_training
from benchmarks.aux_weight import smooth, spread, summary
from pspnet_fast.data import write_scenes
from pspnet_fast.demo.compare_training import Run
from pspnet_fast.engine.train import Trainer

TINY = ("data.crop=33", "optim.batch_size=2", "data.workers=0", "run.amp=none")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # PyTorch's own convolutions over tiny maps are not the same to the last bit on several
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=4, val=3, size=(48, 64))


# ---- fused and plain -------------------------------------------------------------------------------------------------


def test_losses_and_miou_in_float64(scenes: Path, tmp_path: Path) -> None:
    """In float32 tests/test_demo.py compares."""
    lengths = ["--steps=2", "--training-steps=0", "--val-images=2"]
    compare_training.main(["--root", str(scenes), "--data=scenes", *lengths, f"--save={tmp_path}", *TINY])
    (row,) = json.loads((tmp_path / "training_scenes.json").read_text())["rows"]
    assert row["dtype"] == "float64"
    assert set(row["loss"]) == set(row["peak_bytes"]) == {"plain", "fused", "control"}
    assert row["largest_difference"]["fused"] < 1e-9
    assert 0 < row["largest_difference"]["control"] < 1e-9
    assert row["miou"]["steps"] == [2]
    assert row["miou"]["fused"] == pytest.approx(row["miou"]["plain"], abs=1e-3)
    assert all(0 <= value <= 1 for value in row["miou"]["control"])


def test_differing_losses_in_float64_are_a_failure(scenes: Path) -> None:
    options = compare_training.parse(["--root", str(scenes), "--data=scenes"])
    config = compare_training.configuration(options, scenes, 2, "none")
    runs = {"plain": Run([2.0, 1.0], 0.1, 1), "control": Run([2.0, 1.0], 0.1, 1)}
    for fused, wrong in (([2.0, 1.0 + 1e-8], False), ([2.0, 1.1], True), ([2.0, float("nan")], True)):
        row = compare_training.row_of(options, config, "float64", {**runs, "fused": Run(fused, 0.05, 1)})
        assert bool(row["failures"]) is wrong
    assert row["images_per_second"] == {"plain": 40.0, "control": 40.0, "fused": 80.0}


def test_a_data_set_needs_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_training.parse(["--data", "camvid"])
    assert "--data camvid needs its folder: --root" in capsys.readouterr().err
    assert compare_training.parse([]).data == "scenes"


# ---- the auxiliary loss ----------------------------------------------------------------------------------------------


def tiny(scenes: Path, out: Path, *more: str) -> argparse.Namespace:
    words = ["--weights=0,1", "--seeds=1", f"--out={out}", *TINY, "run.max_steps=4", "run.validate_every=1", *more]
    return aux_weight.parse(["--root", str(scenes), *words])


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("finished")
    return out, aux_weight.run_all(tiny(scenes, out))


def test_runs_of_a_seed_are_pairs(finished: tuple[Path, dict[str, Any]], scenes: Path) -> None:
    results = finished[1]
    plain, weighted = results["runs"]
    assert plain["main_loss"][0] == weighted["main_loss"][0]  # before the first update only λ differs
    assert plain["main_loss"][1:] != weighted["main_loss"][1:]
    assert [step for step, _ in plain["main_loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in plain["subset_miou"]] == [2, 4]
    assert plain["miou"] == plain["subset_miou"][-1][1]
    assert str(scenes) not in json.dumps(results)


def test_finished_runs_are_read_and_other_settings_refused(
    finished: tuple[Path, dict[str, Any]], scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = finished
    monkeypatch.setattr(Trainer, "_train_step", lambda *_: pytest.fail("trained again"))
    assert aux_weight.run_all(tiny(scenes, out))["runs"] == results["runs"]
    with pytest.raises(ValueError, match=r"another setting \(run.max_steps: 4 -> 5\): choose another --out"):
        aux_weight.run_all(tiny(scenes, out, "run.max_steps=5"))


def test_a_stopped_run_goes_on(
    finished: tuple[Path, dict[str, Any]], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Trainer._train_step, []

    def interrupted(self: Any, *arguments: Any) -> None:
        done.append(self.state.step)
        if len(done) == 4:
            raise KeyboardInterrupt
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        aux_weight.run_all(tiny(scenes, tmp_path))
    runs = aux_weight.run_all(tiny(scenes, tmp_path))["runs"]
    assert done[:6] == [0, 1, 2, 3, 2, 3]  # the last checkpoint is that of the validation after step 2
    keys = ("main_loss", "subset_miou", "iou")
    assert [[run[key] for key in keys] for run in runs] == [[run[key] for key in keys] for run in finished[1]["runs"]]


def made_up(miou: dict[float, list[float]]) -> list[dict[str, Any]]:
    """Runs of a falling loss, lower by λ / 10, and given mIoU."""
    return [
        {
            "weight": weight,
            "seed": seed,
            "main_loss": [[step, 2 - step / 10 - weight / 10] for step in range(1, 11)],
            "miou": value,
        }
        for weight, values in miou.items()
        for seed, value in enumerate(values)
    ]


def test_summary_compares_seed_by_seed() -> None:
    plain, _, most = summary(made_up({0.0: [0.2, 0.4], 0.4: [0.3, 0.35], 1.0: [0.25, 0.5]}))["weights"]
    assert most["final_miou_difference"]["values"] == pytest.approx([0.05, 0.1])
    assert most["mean_loss_difference"]["mean"] == pytest.approx(-0.1)
    assert plain["final_miou"]["std"] == pytest.approx(0.2 / 2**0.5, abs=1e-6)
    assert spread([0.5]) == {"mean": 0.5, "std": None, "min": 0.5, "max": 0.5, "values": [0.5]}


def test_smooth() -> None:
    assert smooth([(1, 3.0), (2, 5.0)]) == [(2, 4.0)]
    assert smooth([(step, float(step)) for step in range(1, 8)]) == [(5, 3.0), (6, 4.0), (7, 5.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "0.2,0.4"], "needs 0, to compare with"),
        (["--weights", "0"], "at least one positive weight"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aux_weight.parse(arguments)
    assert message in capsys.readouterr().err
