"""Checkpoints that stay, the best by any metric, early stopping, and loggers."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_files import MakeConfig, rows, saved_step

from pspnet_fast.engine import ConfigError, checkpoint, train
from pspnet_fast.engine.evaluate import Metrics
from pspnet_fast.engine.loggers import Mlflow


def test_the_last_checkpoints_stay(make_config: MakeConfig) -> None:
    options = ("run.save_every_steps=1", "run.keep_last=2")
    folder = train(make_config(*options, "run.max_steps=4")).folder
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-3.pt", "step-4.pt"]
    assert [checkpoint.load(folder / f"step-{step}.pt")["step"] for step in (3, 4)] == [3, 4]
    train(make_config(*options, "run.max_steps=11"), resume=True)
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-10.pt", "step-11.pt"]
    assert saved_step(folder) == 11


def scripted(monkeypatch: pytest.MonkeyPatch, summaries: list[dict[str, float]]) -> None:
    """Validations find these numbers, one after the other."""
    found = iter(summaries)
    monkeypatch.setattr(Metrics, "summary", lambda _: {"macc": 0.0, "accuracy": 0.0, **next(found)})


def test_best_by_another_metric(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(
        monkeypatch, [{"miou": 0.5, "accuracy": 0.1}, {"miou": 0.3, "accuracy": 0.6}, {"miou": 0.9, "accuracy": 0.6}]
    )
    options = ("run.validate_every=1", "optim.batch_size=4", "run.best=accuracy")
    result = train(make_config(*options, "run.max_steps=6"))
    best = checkpoint.load(result.folder / "best.pt")
    assert (best["step"], best["metrics"]["accuracy"], result.best_miou) == (4, 0.6, 0.3)
    assert checkpoint.load(result.folder / "last.pt")["since_best"] == 1


def test_best_by_the_lowest_loss_and_by_a_name_that_is_none(make_config: MakeConfig) -> None:
    result = train(make_config("run.validate_every=1", "run.best=train_loss", "run.max_steps=8"))
    table = rows(result.folder / "metrics.csv")
    lowest = min(table, key=lambda row: float(row["train_loss"]))
    assert checkpoint.load(result.folder / "best.pt")["step"] == int(lowest["step"])
    with pytest.raises(
        ConfigError, match=r"run\.best = 'mIoU' is no metric.*miou, macc, accuracy, train_loss, iou_sky"
    ):
        train(make_config("run.best=mIoU", "run.max_steps=1", folder="other"))
    assert not (result.folder.parent / "other").exists()  # nothing was trained before


def test_early_stopping(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, [{"miou": miou} for miou in (0.2, 0.4, 0.3, math.nan, 0.4, 0.4, 0.4)])
    options = ("run.validate_every=1", "optim.batch_size=8", "run.patience=2")
    result = train(make_config(*options, "run.max_steps=20"))
    assert result.step == 4  # the second is the best, the third and the fourth are not
    assert "without a better miou: the run ends (run.patience)" in capsys.readouterr().err
    again = train(make_config(*options, "run.max_steps=20"), resume=True)
    assert again.step == result.step


class Recorder(SimpleNamespace):
    """In the place of a library: remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__(calls=[], id="abc", info=SimpleNamespace(run_id="abc"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Recorder:
            self.calls.append((name, arguments, options))
            return self

        return call


@pytest.mark.parametrize(("name", "scalars", "end"), [("wandb", "log", "finish"), ("mlflow", "log_metrics", "end_run")])
def test_loggers_of_other_libraries(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, name: str, scalars: str, end: str
) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, name, library)  # type: ignore[arg-type]
    folder = train(make_config(f"run.logger={name}", "run.max_steps=2", "run.pictures=1")).folder
    assert not (folder / "tensorboard").exists()
    logged = [(arguments[0], options["step"]) for call, arguments, options in library.calls if call == scalars]
    losses = [(values["train/loss"], step) for values, step in logged if "train/loss" in values]
    expected = [(float(row["loss"]), int(row["step"])) for row in rows(folder / "losses.csv")]
    assert losses == [(pytest.approx(loss, rel=1e-6), step) for loss, step in expected]
    assert any("val/miou" in values for values, _ in logged)
    assert library.calls[-1][0] == end
    train(make_config(f"run.logger={name}", "run.max_steps=3"), resume=True)
    begun = [options for call, _, options in library.calls if call in ("init", "start_run")]
    assert [options.get("id", options.get("run_id")) for options in begun] == [None, "abc"]
    assert sum(call == "log_params" for call, _, _ in library.calls) == (name == "mlflow")


def test_names_that_mlflow_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", library)  # type: ignore[arg-type]
    Mlflow(tmp_path, {}, 0).scalars({"iou/Bäume (alle)": 0.5}, 1)
    assert library.calls[-1] == ("log_metrics", ({"iou/Bäume _alle_": 0.5},), {"step": 1})


def test_a_logger_that_is_not_installed(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_config("run.logger=wandb")
    with pytest.raises(ConfigError, match=r"run\.logger = wandb needs the library: pip install wandb"):
        train(config)
    folder = train(make_config("run.logger=none", "run.max_steps=1", folder="none")).folder
    assert not (Path(folder) / "tensorboard").exists()
