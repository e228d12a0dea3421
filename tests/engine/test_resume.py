"""Runs that stop, by a signal, a crash or a kill, and continue as if they had not."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import BUILT_IN, MakeConfig, rows, saved_step, train_module
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from pspnet_fast.data import DatasetError
from pspnet_fast.engine import CheckpointError, TrainConfig, checkpoint, train
from pspnet_fast.engine.train import Trainer


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Call ``action`` when ``step`` training steps are done, before the next."""
    original = Trainer._train_step

    def train_step(self: Trainer, *args: Any) -> None:
        if self.state.step == step:
            action()
        original(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", train_step)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def records(folder: Path) -> dict[str, object]:
    """All that a run leaves and that does not depend on the machine, by name; tensors as their bytes."""
    states = {name: checkpoint.load(folder / f"{name}.pt") for name in ("last", "best")}
    del states["last"]["scheduler"]["elapsed"]
    for state in states.values():
        del state["config"]["run"]["folder"]
    machine = ("minutes", "images_per_second", "peak_memory_mb")
    metrics = [[row[key] for key in row if key not in machine] for row in rows(folder / "metrics.csv")]
    others = {"losses": rows(folder / "losses.csv"), "metrics": metrics, "left": list(folder.glob(".*.part"))}
    entries, _ = tree_flatten_with_path(states | others)
    return {keystr(path): x.numpy().tobytes() if isinstance(x, Tensor) else x for path, x in entries}


@contextmanager
def resumed_equals_straight(
    make_config: MakeConfig, *options: str, saved: int, code: int | None = None
) -> Iterator[pytest.MonkeyPatch]:
    """A run that the block's patches end, with an exit code, is resumed and equals one that was not interrupted.

    Args:
        saved: the step that its last checkpoint holds when it ends.
    """
    straight = train(make_config(*options, folder="straight")).folder
    broken = make_config(*options, folder="broken")
    with pytest.MonkeyPatch.context() as patch:
        yield patch
        with pytest.raises((KeyboardInterrupt, SystemExit, DatasetError)) as caught:
            train(broken)
    assert getattr(caught.value, "code", None) == code
    assert saved_step(broken.run.folder) == saved
    torch.manual_seed(99)  # whatever the new process has drawn must not matter
    assert records(train(broken, resume=True).folder) == records(straight)


@pytest.mark.parametrize(
    "extra",
    [
        BUILT_IN,
        ("run.amp=bf16", "optim.ema=0.9", "optim.accumulate=2", "optim.batch_size=4"),
        ("optim.name=adam", "optim.schedule=cosine"),
        ("optim.name=adamw", "optim.schedule=onecycle", "optim.warmup_steps=2", "optim.clip_norm=0.1"),
    ],
)
def test_resumed_run_equals_uninterrupted(make_config: MakeConfig, extra: tuple[str, ...]) -> None:
    options = ("run.save_every_steps=2", "run.validate_every=1", *extra)
    with resumed_equals_straight(make_config, *options, saved=4) as patch:
        before_step(patch, 5, interrupted)


def train_in_a_process(config: TrainConfig) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as everywhere
    torch.set_num_threads(1)
    train(config, resume=True)


def moments(folder: Path) -> list[Callable[[], bool]]:
    """Of a kill: after a checkpoint, at any time (also inside a resume), while a file is written."""
    return [lambda: saved_step(folder) > 2, lambda: True, lambda: any(folder.glob(".*.part"))]


def test_a_run_that_is_killed_equals_one_that_is_not(make_config: MakeConfig, tmp_path: Path) -> None:
    """PSPNET_FAST_CASES kills, or three, of runs that are resumed until they reach their end."""
    options = ("run.max_steps=12", "run.validate_every=1", "run.save_every_steps=3", "run.log_every=2")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pspnet_fast.engine", "timm", "torchmetrics"])  # a process then starts at once

    def reaches_the_end(folder: Path, seconds: float, moment: Callable[[], bool]) -> bool:
        """Whether a process does before it is killed, at a moment so long after its start."""
        config = make_config(*options, "optim.ema=0.5", "data.workers=1", folder=folder.name)
        process = processes.Process(target=train_in_a_process, args=(config,))
        process.start()
        due = time.monotonic() + seconds
        while process.is_alive() and not (time.monotonic() > due and moment()):
            time.sleep(0.0005)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode == 0

    for straight in (tmp_path / "warm-up", tmp_path / "straight"):
        begun = time.monotonic()
        assert reaches_the_end(straight, math.inf, bool)
        duration = time.monotonic() - begun
    draw, kills, most = random.Random(0), 0, int(os.environ.get("PSPNET_FAST_CASES", "3"))
    while kills < most:
        folder, ended = tmp_path / f"from {kills}", False
        while not ended:
            seconds = draw.uniform(0, 0.4 * duration) if kills < most else math.inf
            ended = reaches_the_end(folder, seconds, moments(folder)[kills % 3])
            kills += not ended
        assert records(folder) == records(straight)


def test_resume_takes_changed_options(make_config: MakeConfig) -> None:
    train(make_config("run.max_steps=2"))
    folder = train(make_config("optim.lr=0.5", "optim.power=0", "run.max_steps=3"), resume=True).folder
    assert [float(row["lr"]) for row in rows(folder / "losses.csv")][2] == pytest.approx(0.5)


def test_resume_refuses_another_network(make_config: MakeConfig) -> None:
    folder = train(make_config("run.max_steps=1", *BUILT_IN)).folder
    for change, message in (
        ("model.layers=34", "is of another network.*layer3 has 2 blocks and the model's 6"),
        ("model.norm=group", "is of another network.*batch normalisation and the model group"),
        ("optim.name=adam", r"holds the state of optim\.name=sgd.*model\.weights"),
    ):
        with pytest.raises(CheckpointError, match=rf"last\.pt: {message}") as caught:
            train(make_config(*BUILT_IN, change), resume=True)
        assert len(str(caught.value)) < 1000
    (folder / "best.pt").replace(folder / "last.pt")
    with pytest.raises(CheckpointError, match=r"weights only.*model\.weights"):
        train(make_config(*BUILT_IN), resume=True)


def test_a_resume_that_is_killed_keeps_the_history(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(make_config("run.max_steps=3")).folder
    before = (folder / "losses.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("run.max_steps=5"), resume=True)
    assert (folder / "losses.csv").read_bytes() == before
    train(make_config("run.max_steps=5"), resume=True)
    assert (folder / "losses.csv").read_bytes().startswith(before)
    assert [int(row["step"]) for row in rows(folder / "losses.csv")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_the_step_and_stops(
    make_config: MakeConfig, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(number)  # a shell's background jobs are started with SIGINT ignored
    with resumed_equals_straight(make_config, saved=3, code=128 + number) as patch:
        before_step(patch, 2, lambda: signal.raise_signal(number))
    said = capfd.readouterr().err
    for part in (f"{number.name}: stopping after this step and its checkpoint", "saved step 3", "--resume"):
        assert part in said
    assert signal.getsignal(number) == before


def test_a_second_signal_stops_at_once(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal did not stop the process")

    before_step(monkeypatch, 0, twice)
    with pytest.raises(SystemExit):
        train(make_config())


@pytest.mark.parametrize("code", [None, 128 + signal.SIGTERM], ids=["image", "signal"])
def test_a_validation_that_ends_early_costs_no_step(make_config: MakeConfig, code: int | None) -> None:
    def evaluate(*_: Any, **__: Any) -> None:
        if code is None:
            raise DatasetError("val.png: corrupt")
        signal.raise_signal(signal.SIGTERM)

    options = ("run.validate_every=1", "run.max_steps=6")
    with resumed_equals_straight(make_config, *options, saved=4, code=code) as patch:
        patch.setattr(train_module, "evaluate_loader", evaluate)


def test_a_finished_run_is_not_validated_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(make_config("run.max_steps=2"))
    before = {name: (first.folder / name).read_bytes() for name in ("metrics.csv", "losses.csv", "best.pt")}
    monkeypatch.setattr(train_module, "evaluate_loader", None)
    again = train(make_config("run.max_steps=2"), resume=True)
    assert again.metrics is None
    assert again.best_miou == first.best_miou
    assert {name: (first.folder / name).read_bytes() for name in before} == before
    assert "has ended at step 2 before" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_resumes(make_config: MakeConfig) -> None:
    folder = train(make_config("run.max_steps=2")).folder
    state = checkpoint.load(folder / "last.pt")
    del state["validated"], state["recent_losses"], state["config"]["model"]["pretrained_partial"]
    del state["config"]["optim"]["name"], state["config"]["optim"]["schedule"]  # stochastic gradient descent, and poly
    checkpoint.save({**state, "best": -1.0}, folder / "last.pt")
    resumed = train(make_config("run.max_steps=4"), resume=True)
    assert resumed.step == 4
    assert [int(row["step"]) for row in rows(folder / "metrics.csv")] == [2, 4]


def test_checkpoints_without_an_entry_are_named(make_config: MakeConfig) -> None:
    folder = train(make_config("run.max_steps=1")).folder
    state = checkpoint.load(folder / "last.pt")
    optional = {"format", "epoch", "validated", "recent_losses", "best_miou", "since_best"}
    for key in state.keys() - optional:
        checkpoint.save({name: value for name, value in state.items() if name != key}, folder / "last.pt")
        message = "weights only" if key == "optimizer" else f"no entry '{key}'"
        with pytest.raises(CheckpointError, match=rf"last\.pt: .*{message}"):
            train(make_config("run.max_steps=2"), resume=True)
