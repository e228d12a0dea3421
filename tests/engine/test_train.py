"""Training runs: records, resuming after crashes, accumulation, bad batches."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from torch import Tensor

from pspnet_fast import use_backend
from pspnet_fast.engine import (
    CheckpointError,
    ConfigError,
    DivergedError,
    TrainConfig,
    checkpoint,
    dump_config,
    load_config,
    train,
)
from pspnet_fast.engine.train import Trainer

if TYPE_CHECKING:  # at run time another folder's conftest may bear the name
    from conftest import MakeConfig


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = checkpoint.load(folder / "last.pt")["model"]
    return state


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the process die in the middle of a later step."""
    original = Trainer._train_step

    def step(self: Trainer, *args: Any) -> None:
        if self.state.step == steps:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", step)


def test_a_run_leaves_its_records(make_config: MakeConfig) -> None:
    config = make_config("run.validate_every=1", "run.max_steps=5", "run.pictures=1", "run.log_every=2")
    result = train(config)
    folder = result.folder

    assert result.step == 5
    assert [int(row["step"]) for row in rows(folder / "losses.csv")] == [1, 2, 3, 4, 5]
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


def test_main_and_aux_loss_add_up(make_config: MakeConfig) -> None:
    result = train(make_config("optim.aux_weight=0.3", "run.max_steps=2"))
    for row in rows(result.folder / "losses.csv"):
        assert float(row["loss"]) == pytest.approx(float(row["main_loss"]) + 0.3 * float(row["aux_loss"]), rel=1e-5)


@pytest.mark.parametrize("extra", [(), ("run.amp=bf16", "optim.ema=0.9", "optim.accumulate=2", "optim.batch_size=4")])
def test_resumed_run_equals_uninterrupted(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    options = ("run.save_every_steps=2", "run.validate_every=1", *extra)
    straight = train(make_config(*options, folder="straight")).folder
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(*options, folder="broken"))
    broken = make_config(*options, folder="broken")
    assert checkpoint.load(Path(str(broken.run.folder)) / "last.pt")["step"] == 4

    torch.manual_seed(99)  # whatever the new process has drawn must not matter
    resumed = train(broken, resume=True).folder
    assert weights(resumed).keys() == weights(straight).keys()
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=0)
    assert rows(resumed / "losses.csv") == rows(straight / "losses.csv")
    states = [checkpoint.load(folder / "last.pt") for folder in (resumed, straight)]
    torch.testing.assert_close(states[0]["optimizer"]["state"], states[1]["optimizer"]["state"], rtol=0, atol=0)
    if "optim.ema=0.9" in extra:
        torch.testing.assert_close(states[0]["ema"], states[1]["ema"], rtol=0, atol=0)


def test_kill_9_and_resume(make_config: MakeConfig, tmp_path: Path) -> None:
    options = ("run.max_steps=30", "run.save_every_steps=3", "run.log_every=1", "data.crop=33", "data.workers=1")
    config = make_config(*options, folder="killed")
    dump_config(config, tmp_path / "config.yaml")
    code = "import sys; from pspnet_fast.engine import *; train(load_config(sys.argv[1]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "config.yaml")], env=environment)
    folder, deadline = tmp_path / "killed", time.monotonic() + 120
    while not (folder / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"

    reached = checkpoint.load(folder / "last.pt")["step"]
    assert 0 < reached < 30
    resumed = train(config, resume=True)
    assert resumed.step == 30
    straight = train(make_config(*options, folder="straight")).folder
    torch.testing.assert_close(weights(folder), weights(straight), rtol=0, atol=0)
    assert rows(folder / "losses.csv") == rows(straight / "losses.csv")


def test_resume_before_the_first_checkpoint_starts_anew(make_config: MakeConfig) -> None:
    assert train(make_config("run.max_steps=1"), resume=True).step == 1


def test_a_folder_is_not_overwritten(make_config: MakeConfig) -> None:
    train(make_config("run.max_steps=1"))
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        train(make_config("run.max_steps=1"))


def test_resume_takes_changed_options(make_config: MakeConfig) -> None:
    train(make_config("run.max_steps=2"))
    folder = train(make_config("optim.lr=0.5", "optim.power=0", "run.max_steps=3"), resume=True).folder
    assert [float(row["lr"]) for row in rows(folder / "losses.csv")][2] == pytest.approx(0.5)


def test_environment_chooses_the_backend(make_config: MakeConfig) -> None:
    with use_backend("reference"):
        folder = train(make_config("run.max_steps=1")).folder
    assert yaml.safe_load((folder / "versions.yaml").read_text())[0]["backend"] == "reference"


def test_resume_refuses_another_network(make_config: MakeConfig) -> None:
    folder = train(make_config("run.max_steps=1")).folder
    with pytest.raises(CheckpointError, match=r"last\.pt: is of another network"):
        train(make_config("model.layers=34"), resume=True)
    (folder / "best.pt").replace(folder / "last.pt")
    with pytest.raises(CheckpointError, match=r"weights only.*model\.weights"):
        train(make_config(), resume=True)


def test_accumulation_equals_a_larger_batch(make_config: MakeConfig) -> None:
    # Group normalisation, as batch statistics would differ; no dropout, as the masks would. Crops of unequal padding.
    options = ("model.norm=group", "model.dropout=0", "optim.batch_size=4", "run.max_steps=2", "data.crop=97")
    whole = train(make_config(*options, folder="whole")).folder
    parts = train(make_config(*options, "optim.accumulate=4", folder="parts")).folder
    for a, b in zip(rows(whole / "losses.csv"), rows(parts / "losses.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
        assert a["pixel_accuracy"] == b["pixel_accuracy"]
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-3, atol=1e-4)


def test_backends_agree(make_config: MakeConfig) -> None:
    folders = [
        train(make_config(f"run.backend={name}", "run.max_steps=3", folder=name)).folder
        for name in ("auto", "reference")
    ]
    for a, b in zip(*(rows(folder / "losses.csv") for folder in folders), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-3)


def test_batches_without_labels_do_not_poison_the_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
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
    state = checkpoint.load(Path(str(config.run.folder)) / "last.pt")
    assert state["step"] < 3


def test_schedule_by_time_ends_on_time(make_config: MakeConfig) -> None:
    changes = (
        "optim.schedule_by=time",
        "run.max_steps=null",
        "run.max_minutes=0.05",
        "run.log_every=1",
        "data.crop=33",
    )
    result = train(make_config(*changes))
    rates = [float(row["lr"]) for row in rows(result.folder / "losses.csv")]
    assert result.step == len(rates) > 2
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
        ("data.root=null", r"data\.root is not set"),
        ("data.root=/nowhere", r"/nowhere"),
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
        train(make_config(change))
    assert type(caught.value).__name__ in ("ConfigError", "DatasetError")


def test_image_that_cannot_be_read(make_config: MakeConfig, scenes: Path, tmp_path: Path) -> None:
    import shutil

    from pspnet_fast.data import DatasetError
    from pspnet_fast.engine.sampling import worker_message

    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    for image in (root / "images" / "train").iterdir():
        image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(DatasetError) as caught:
        train(make_config(f"data.root={root}", "data.workers=1"))
    message = worker_message(caught.value)
    assert message.startswith(str(root))
    assert "Traceback" not in message


def test_config_is_checked_first() -> None:
    with pytest.raises(ConfigError, match="the run has no length"):
        train(TrainConfig())
