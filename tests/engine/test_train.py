"""Training runs: records, progress, accumulation, bad batches, mistakes."""

from __future__ import annotations

import itertools
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_files import BUILT_IN, MakeConfig, file_size_limit, rows, saved_step, train_module, weights
from torch import Tensor

from pspnet_fast import use_backend
from pspnet_fast.data import DatasetError
from pspnet_fast.engine import (
    CheckpointError,
    ConfigError,
    DivergedError,
    TrainConfig,
    checkpoint,
    load_config,
    run_log,
    train,
)
from pspnet_fast.engine.distributed import World
from pspnet_fast.engine.errors import worker_message
from pspnet_fast.engine.progress import Progress
from pspnet_fast.engine.train import Trainer
from pspnet_fast.files import OutputError


def test_a_run_leaves_its_records(make_config: MakeConfig) -> None:
    options = ("run.validate_every=1", "run.max_steps=5", "run.pictures=1", "run.log_every=2", "optim.aux_weight=0.3")
    config = make_config(*options)
    result = train(config)
    folder = result.folder

    assert result.step == 5
    losses = rows(folder / "losses.csv")
    assert [int(row["step"]) for row in losses] == [1, 2, 3, 4, 5]
    for row in losses:
        assert float(row["loss"]) == pytest.approx(float(row["main_loss"]) + 0.3 * float(row["aux_loss"]), rel=1e-5)
    assert [int(row["step"]) for row in rows(folder / "metrics.csv")] == [4, 5]  # an epoch has 4 steps
    assert float(rows(folder / "metrics.csv")[-1]["miou"]) == pytest.approx(result.metrics.miou, rel=1e-6)
    assert load_config(folder / "config.yaml") == config
    (started,) = yaml.safe_load((folder / "versions.yaml").read_text())
    assert started["torch"] == str(torch.__version__)
    assert (folder / "losses.png").stat().st_size > 1000
    assert list((folder / "tensorboard").iterdir())

    best = checkpoint.load(folder / "best.pt")
    assert best["metrics"]["miou"] == pytest.approx(result.best_miou)
    assert best["dataset"]["classes"][0] == "sky"
    assert "optimizer" not in best


def test_labels_are_checked_in_every_epoch_and_at_the_end(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that is where one out of range shows; the weights after it are not saved."""
    config = make_config("run.validate_every=1", "run.max_steps=5", "run.log_every=100")
    checked = []
    step = Trainer._train_step

    def counted(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        checked.append("step")

    def check(device: torch.device) -> None:
        checked.append(device.type)
        if checked.count("step") == 5:
            raise IndexError("Target 99 is out of bounds.")

    monkeypatch.setattr(Trainer, "_train_step", counted)
    monkeypatch.setattr(train_module, "check_labels", check)
    with pytest.raises(IndexError, match="Target 99"):
        train(config)
    assert checked == [*["step"] * 4, "cpu", "step", "cpu"]
    assert saved_step(config.run.folder) == 4


def test_accumulation_equals_a_larger_batch(make_config: MakeConfig) -> None:
    # Group normalisation, as batch statistics would differ; no dropout, as the masks would. Crops of unequal padding.
    options = (*BUILT_IN, "model.norm=group", "model.dropout=0", "data.crop=97")
    options += ("optim.batch_size=4", "run.max_steps=2")
    whole = train(make_config(*options, folder="whole")).folder
    parts = train(make_config(*options, "optim.accumulate=4", folder="parts")).folder
    for a, b in zip(rows(whole / "losses.csv"), rows(parts / "losses.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
        assert a["pixel_accuracy"] == b["pixel_accuracy"]
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-3, atol=1e-4)


def test_backends_agree(make_config: MakeConfig) -> None:
    fused = train(make_config("run.max_steps=3", folder="fused")).folder
    with use_backend("reference"):  # run.backend=auto leaves what is chosen
        plain = train(make_config("run.max_steps=3", folder="plain")).folder
    assert yaml.safe_load((plain / "versions.yaml").read_text())[0]["backend"] == "reference"
    for a, b in zip(rows(fused / "losses.csv"), rows(plain / "losses.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-3)
    chosen = train(make_config("run.max_steps=3", "run.backend=reference", folder="chosen")).folder
    assert rows(chosen / "losses.csv") == rows(plain / "losses.csv")


def test_batches_without_labels_change_no_weight(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._train_step
    seen: list[list[Tensor]] = []

    def step(self: Trainer, images: Tensor, labels: Tensor, progress: float) -> None:
        if self.state.step == 1:
            labels = torch.full_like(labels, 255)
        original(self, images, labels, progress)
        seen.append([p.detach().clone() for p in self.state.model.parameters()])

    monkeypatch.setattr(Trainer, "_train_step", step)
    # Without momentum and decay a batch that adds no gradient leaves every weight where it was.
    result = train(make_config("optim.momentum=0", "optim.weight_decay=0", "run.max_steps=3"))
    assert result.skipped == 1
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)
    assert not torch.equal(seen[2][0], seen[1][0])
    assert float(rows(result.folder / "losses.csv")[1]["loss"]) == 0
    assert all(torch.isfinite(value).all() for value in weights(result.folder).values())


def test_divergence_names_step_and_remedy(make_config: MakeConfig) -> None:
    config = make_config("optim.lr=1e30", "run.log_every=1", "run.save_every_steps=1")
    with pytest.raises(DivergedError, match=r"step [23] is (nan|inf).*Lower optim\.lr"):
        train(config)
    assert saved_step(config.run.folder) < 3


def test_schedule_by_time_ends_on_time(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(Progress, "elapsed", lambda _: float(next(seconds)))
    changes = ("optim.schedule_by=time", "run.max_steps=null", "run.max_minutes=0.25", "run.log_every=1")
    result = train(make_config(*changes))
    rates = [float(row["lr"]) for row in rows(result.folder / "losses.csv")]
    assert 10 < result.step == len(rates) <= 15
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]


def test_group_weights_and_fine_tuning(make_config: MakeConfig) -> None:
    first = train(make_config("run.max_steps=1", folder="first")).folder
    result = train(make_config(f"model.weights={first}/best.pt", "optim.lr=0", "run.max_steps=1", folder="second"))
    # The rate was 0: the network still is the one it started from.
    before, after = weights(first), weights(result.folder)
    assert torch.equal(before["cls.4.weight"], after["cls.4.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.name=camvidd", r"did you mean 'camvid'"),
        ("optim.batch_size=9", r"exceeds the 8 training images"),
        ("optim.batch_size=1", r"model\.norm=group"),
        ("optim.accumulate=4", r"multiple of 4"),
        ("model.layers=19", r"layers must be one of"),
        ("model.weights=/nowhere.pt", r"model\.weights.*/nowhere\.pt"),
        ("run.device=tpu9", r"run\.device = 'tpu9'"),
        ("run.amp=fp16", r"fp16 needs a GPU"),
        ("optim.class_weights=[1, 2]", r"2 entries, scenes has 11 classes"),
    ],
)
def test_mistakes_are_named(make_config: MakeConfig, change: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        train(make_config(*BUILT_IN, change))
    assert type(caught.value).__name__ in ("ConfigError", "DatasetError")


def test_image_that_cannot_be_read(make_config: MakeConfig, scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    for image in (root / "images" / "train").iterdir():
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    with pytest.raises(DatasetError) as caught:
        train(make_config(f"data.root={root}", "data.workers=1"))
    message = worker_message(caught.value)
    assert message.startswith(str(root))
    assert "Traceback" not in message


def test_config_is_checked_first() -> None:
    with pytest.raises(ConfigError, match="the run has no length"):
        train(TrainConfig())


def test_a_step_that_spoils_the_weights_is_not_saved(make_config: MakeConfig) -> None:
    # The loss of a step is computed before its update, so the checkpoint comes before a loss that is not finite.
    config = make_config("optim.lr=1e39", "run.log_every=1", "run.save_every_steps=1")
    with pytest.raises(DivergedError, match=r"is not finite after step 1.*last\.pt is not overwritten"):
        train(config)
    assert saved_step(config.run.folder) == 0
    assert train(make_config("run.max_steps=3"), resume=True).step == 3


def test_the_folder_is_named_first_and_progress_goes_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_log, "LINE_SECONDS", 0.0)
    original = train_module.evaluate_loader

    def evaluate(*args: Any, **options: Any) -> Any:
        said = ""
        while "step 2, " not in said:  # the thread prints while the training thread is busy
            time.sleep(0.05)
            said += capsys.readouterr().err
        assert "nan" not in said  # no loss was fetched yet
        assert said.startswith(f"run folder: {config.run.folder}\n")
        return original(*args, **options)

    monkeypatch.setattr(train_module, "evaluate_loader", evaluate)
    config = make_config("run.max_steps=2")
    assert train(config).metrics is not None


def test_rates_and_time_left_count_validations_and_checkpoints(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    config = make_config("run.max_steps=25", "run.validate_every=1", "run.save_every_steps=5")  # batches of 2
    progress = Progress(config, World(torch.device("cpu")), 10, started=100.0, before=0.0)

    for part, seconds in [("step", 1.0)] * 10 + [("save", 2.0)] * 2 + [("validation", 16.0)]:
        with progress.measure(part):
            now[0] += seconds
    assert progress.elapsed() == 30.0
    assert progress.images_per_second() == 2.0
    assert progress.images_per_second(overall=True) == pytest.approx(20 / 30)
    # From step 10: 15 steps, the validations after 20 and 25, the checkpoints of 15, 20 and 25.
    assert progress.seconds_left(10, 30.0) == 15 * 1.0 + 2 * 16.0 + 3 * 2.0


def test_tensorboard_on_a_full_disk(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    log = run_log.RunLog(tmp_path, config, enabled=True, step=0, validated=-1, device=torch.device("cpu"))
    picture = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)

    def fill() -> None:
        for step in range(200):
            log.show_panels([picture], step)
            with suppress(OSError):
                log.logger.board.flush()  # type: ignore[attr-defined]  # waits for the thread

    with file_size_limit(20_000), pytest.raises(OutputError, match=r"tensorboard: cannot be written"):
        fill()
    log.close()


def test_a_full_disk_is_found_before_the_first_step(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_train_step", None)
    config = make_config()
    with file_size_limit(100_000), pytest.raises(CheckpointError, match=r"last\.pt: cannot be written"):
        train(config)
    assert not list(Path(str(config.run.folder)).glob("*.part"))
