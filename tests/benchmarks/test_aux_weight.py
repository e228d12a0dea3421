"""The weights of the auxiliary loss compared: what follows from the runs, and the command on drawn scenes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import aux_weight
from benchmarks.aux_weight_plot import draw
from benchmarks.aux_weight_report import sentences, summary, table


def run(weight: float, seed: int, miou: float, loss: float) -> dict[str, Any]:
    curve = [[10 * (i + 1), loss + (9 - i) / 10] for i in range(10)]
    subset = [[50, miou / 2], [100, miou]]
    return {"weight": weight, "seed": seed, "miou": miou, "main_loss": curve, "subset_miou": subset}


RUNS = [
    run(0.0, 0, 0.20, 1.0),
    run(0.4, 0, 0.25, 0.9),
    run(0.0, 1, 0.30, 1.2),
    run(0.4, 1, 0.28, 1.1),
]


def test_differences_are_taken_seed_by_seed() -> None:
    found = {row["weight"]: row for row in summary(RUNS)["weights"]}
    assert found[0.0]["final_miou_difference"]["mean"] == pytest.approx(0)
    assert found[0.4]["final_miou"]["mean"] == pytest.approx(0.265)
    difference = found[0.4]["final_miou_difference"]
    assert (difference["min"], difference["max"]) == (pytest.approx(-0.02), pytest.approx(0.05))
    assert found[0.4]["mean_loss_difference"]["max"] == pytest.approx(-0.1)


def test_steps_to_a_level_are_none_where_a_run_never_reaches_it() -> None:
    rows = summary(RUNS, loss_levels=[0.95])["weights"]
    plain, helped = (next(row["steps_to_loss"]["0.95"] for row in rows if row["weight"] == w) for w in (0.0, 0.4))
    assert plain == [None, None]
    assert helped[1] is None


def arguments(folder: Path) -> list[str]:
    small = "--weights 0,0.4 --seeds 1 --steps 2 --size 65 --batch 2 --validations 1 --val-every 30 --amp none"
    return [*small.split(), "--workers", "0", "--out", str(folder)]


def test_a_stopped_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aux_weight, "RESULTS", tmp_path)
    monkeypatch.setattr(aux_weight, "PICTURE", tmp_path / "aux_weight.svg")
    write = aux_weight.write_scenes
    monkeypatch.setattr(aux_weight, "write_scenes", lambda folder, **_: write(folder, train=4, val=2, size=(66, 80)))
    monkeypatch.setattr(sys, "argv", ["aux_weight", *arguments(tmp_path / "runs"), "--save"])
    aux_weight.main()

    results = json.loads((tmp_path / "aux_weight_scenes.json").read_text())
    assert [(r["weight"], r["seed"]) for r in results["runs"]] == [(0.0, 0), (0.4, 0)]
    first, second = (r["main_loss"] for r in results["runs"])
    assert first[0] == second[0], "the first step's main loss does not depend on the weight"
    assert first[1] != second[1], "the second one's does"
    assert "<svg" in (tmp_path / "aux_weight.svg").read_text()
    assert "λ=0.4" in capsys.readouterr().out

    monkeypatch.setattr(aux_weight, "trained", lambda *_: pytest.fail("a finished run is not trained again"))
    aux_weight.main()
    monkeypatch.setattr(sys, "argv", ["aux_weight", *arguments(tmp_path / "runs"), "--steps", "3"])
    with pytest.raises(ValueError, match="is of another setting"):
        aux_weight.main()


def test_the_picture_and_the_words_come_from_the_results_alone(tmp_path: Path) -> None:
    results = json.loads((aux_weight.ROOT / "benchmarks/results/aux_weight_camvid.json").read_text())
    assert results["summary"] == json.loads(json.dumps(summary(results["runs"])))
    assert table(results).count("\n") >= 5
    assert "3 seeds" in sentences(results)
    assert draw(results, tmp_path / "again.svg").is_file()


def test_zero_must_be_among_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aux_weight.parse(["--weights", "0.2,0.4"])
    assert "needs 0, to compare with" in capsys.readouterr().err
