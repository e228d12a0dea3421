"""The auxiliary loss's benchmark: its runs are pairs and can be stopped, and what it says follows from the numbers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import aux_weight
from benchmarks.aux_weight_plot import draw
from benchmarks.aux_weight_report import reached, sentences, smooth, spread, steps_text, summary, table
from pspnet_fast.data import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=4, val=3, size=(48, 64))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's own convolutions over tiny maps are not the same to the last bit on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(scenes: Path, out: Path, *more: str) -> argparse.Namespace:
    arguments = (
        "--weights 0,1 --seeds 1 --steps 4 --size 33 --batch 2 --amp none --workers 0 --validations 2 --val-every 2"
    )
    return aux_weight.parse(["--root", str(scenes), "--out", str(out), *arguments.split(), *more])


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key in ("main_loss", "subset_miou", "iou")} for row in rows]


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[argparse.Namespace, list[dict[str, Any]]]:
    options = tiny(scenes, tmp_path_factory.mktemp("finished"))
    return options, aux_weight.run_all(options)


def test_runs_of_a_seed_are_pairs(finished: tuple[argparse.Namespace, list[dict[str, Any]]]) -> None:
    _, (plain, weighted) = finished
    assert plain["main_loss"][0] == weighted["main_loss"][0]  # before the first update only λ could tell them apart
    assert plain["main_loss"][1:] != weighted["main_loss"][1:]
    assert [step for step, _ in plain["main_loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in plain["subset_miou"]] == [2, 4]


def test_finished_runs_are_read_and_other_settings_refused(
    finished: tuple[argparse.Namespace, list[dict[str, Any]]], scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, rows = finished
    monkeypatch.setattr(aux_weight, "trained", lambda *_: pytest.fail("trained again"))
    assert aux_weight.run_all(options) == json.loads(json.dumps(rows))
    with pytest.raises(ValueError, match=r"another setting \(run.max_steps: 4 -> 5\): choose another --out"):
        aux_weight.run_all(tiny(scenes, options.out, "--steps", "5"))


def test_a_stopped_run_goes_on(
    finished: tuple[argparse.Namespace, list[dict[str, Any]]],
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, taken = aux_weight.MeasuredTrainer._train_step, []

    def interrupted(self: Any, *arguments: Any) -> None:
        taken.append(self.state.step)
        if len(taken) == 4:
            raise KeyboardInterrupt
        step(self, *arguments)

    monkeypatch.setattr(aux_weight.MeasuredTrainer, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        aux_weight.run_all(tiny(scenes, tmp_path))
    rows = aux_weight.run_all(tiny(scenes, tmp_path))
    assert taken[:6] == [0, 1, 2, 3, 2, 3]  # the last checkpoint is that of the validation after step 2
    assert without_time(rows) == without_time(finished[1])


def test_what_is_kept(finished: tuple[argparse.Namespace, list[dict[str, Any]]], tmp_path: Path) -> None:
    results = json.loads(json.dumps(aux_weight.content(*finished)))
    assert str(finished[0].root) not in json.dumps(results)
    assert len(table(results).splitlines()) == 3
    assert "1 seed, 4 steps of 2 crops of 33, ResNet-18" in sentences(results)
    first, second = (draw(results, tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    assert b"<svg" in first


def test_kept_results_are_told_and_drawn_again(
    finished: tuple[argparse.Namespace, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, _ = finished
    monkeypatch.setattr(aux_weight, "RESULTS", tmp_path)
    monkeypatch.setattr(aux_weight, "PICTURES", {"camvid": tmp_path / "drawn.svg"})
    monkeypatch.setattr(aux_weight, "parse", lambda: argparse.Namespace(**{**vars(options), "save": True}))
    aux_weight.main()
    told, drawn = capsys.readouterr().out, (tmp_path / "drawn.svg").read_bytes()
    (tmp_path / "drawn.svg").unlink()
    monkeypatch.setattr(aux_weight, "parse", lambda: argparse.Namespace(plot=True))
    aux_weight.main()
    assert capsys.readouterr().out in told
    assert (tmp_path / "drawn.svg").read_bytes() == drawn


def made_up(miou: dict[float, list[float]]) -> list[dict[str, Any]]:
    """Runs of a falling loss, lower by λ / 10, and given mIoU."""
    return [
        {
            "weight": weight,
            "seed": seed,
            "main_loss": [[step, 2 - step / 10 - weight / 10] for step in range(1, 11)],
            "subset_miou": [[5, value / 2], [10, value]],
            "miou": value,
        }
        for weight, values in miou.items()
        for seed, value in enumerate(values)
    ]


def test_summary_compares_seed_by_seed() -> None:
    found = summary(made_up({0.0: [0.2, 0.4], 0.4: [0.3, 0.35], 1.0: [0.25, 0.5]}), [1.5], [0.39])
    plain, _, most = found["weights"]
    assert most["final_miou_difference"]["values"] == pytest.approx([0.05, 0.1])
    assert most["mean_loss_difference"]["mean"] == pytest.approx(-0.1)
    assert plain["final_miou"]["std"] == pytest.approx(0.2 / 2**0.5, abs=1e-6)
    assert plain["steps_to_miou"]["0.39"] == [None, pytest.approx(9.8, abs=0.06)]
    assert plain["steps_to_loss"]["1.5"] == pytest.approx([7, 7])  # there the mean of steps 3 to 7 is that of step 5
    for row in found["weights"]:  # the level that every run reaches
        assert None not in row["steps_to_miou"]["0.2"]


def test_sentences_follow_the_numbers() -> None:
    config = {"run": {"max_steps": 10}, "optim": {"batch_size": 2}, "data": {"crop": 33}, "model": {"layers": 18}}

    def said(miou: dict[float, list[float]]) -> str:
        return sentences({"data": "camvid", "config": config, "summary": summary(made_up(miou))})

    lifted = said({0.0: [0.2, 0.4], 0.4: [0.3, 0.5]})
    assert "mIoU is higher in every seed with λ=0.4; λ=0 alone goes from 20.00 to 40.00 points" in lifted
    assert "mIoU is lower in every seed with λ=0.4" in said({0.0: [0.3, 0.5], 0.4: [0.2, 0.4]})
    assert "mIoU is not of one sign over the seeds with λ=0.4" in said({0.0: [0.3, 0.5], 0.4: [0.4, 0.4]})
    assert "main loss, averaged over the whole run, is lower in every seed" in lifted
    assert "a chance of 1 in 2;" in lifted


def test_reached() -> None:
    curve = [(10, 2.0), (20, 1.0), (30, 1.5)]
    assert reached(curve, 1.5, -1) == 15
    assert reached(curve, 0.5, -1) is None
    assert reached(curve, 2.5, -1) == 10
    assert reached([(10, 0.1), (20, 0.3)], 0.25, +1) == 17.5


def test_smooth_and_spread() -> None:
    assert smooth([(1, 3.0), (2, 5.0)]) == [(2, 4.0)]
    assert smooth([(step, float(step)) for step in range(1, 8)]) == [(5, 3.0), (6, 4.0), (7, 5.0)]
    assert spread([0.5]) == {"mean": 0.5, "std": None, "min": 0.5, "max": 0.5, "values": [0.5]}
    assert steps_text([10.0, None]) == "1 of 2 reach it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "0.2,0.4"], "needs 0, to compare with"),
        (["--weights", "0"], "at least one positive weight"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--val-every", "0"], "--val-every 0 must be at least 1"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aux_weight.parse(arguments)
    assert message in capsys.readouterr().err
