"""Checkpoints: whole or not at all, and never code. Their folder: one process at a time, nothing is overwritten."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import refused
from torch import nn

from pspnet_fast.engine import CheckpointError, ConfigError, DivergedError, checkpoint
from pspnet_fast.engine.checkpoint import claimed
from pspnet_fast.files import OutputError


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_round_trip(tmp_path: Path) -> None:
    state = {"weight": torch.randn(3), "step": 4, "config": {"lr": 0.1, "bins": [1, 2], "none": None}}
    checkpoint.save(state, tmp_path / "new" / "last.pt")
    loaded = checkpoint.load(tmp_path / "new" / "last.pt")
    torch.testing.assert_close(loaded.pop("weight"), state.pop("weight"), rtol=0, atol=0)
    assert loaded == state


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL], ids=["crash", "full disk"])
@pytest.mark.parametrize("stage", ["write", "sync", "rename"])
def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)

    def fail(*args: Any, **kwargs: Any) -> None:
        if stage == "write":
            args[1].write(b"half of a checkpoint")
        raise error

    target = {"write": (torch, "save"), "sync": (os, "fsync"), "rename": (os, "replace")}[stage]
    message = r"last\.pt: cannot be written .*the checkpoint before it is kept" if error is FULL else None
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(CheckpointError if error is FULL else KeyboardInterrupt, match=message):
            checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path)["step"] == 1

    checkpoint.save({"step": 3}, path)
    assert checkpoint.load(path)["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("entry", ["model", "optimizer", "ema"])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, entry: str, value: float) -> None:
    state: dict[str, Any] = {"step": 1, "model": {"w": torch.randn(9)}, "optimizer": {"state": {0: torch.randn(9)}}}
    state["ema"] = {"model": {"w": torch.randn(9)}, "updates": torch.tensor(3)}
    checkpoint.save(state, tmp_path / "last.pt")
    where = state["optimizer"]["state"] if entry == "optimizer" else state[entry].get("model", state[entry])
    next(iter(where.values()))[4] = value
    with pytest.raises(DivergedError, match=rf"{entry}.* is not finite after step 2.*Lower optim\.lr"):
        checkpoint.save({**state, "step": 2}, tmp_path / "last.pt")
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path, draw = tmp_path / "last.pt", random.Random(0)
    checkpoint.save({"weight": torch.randn(1000), "bias": torch.randn(100)}, path)
    good = path.read_bytes()
    start = good.index(checkpoint.load(path)["weight"].numpy().tobytes())
    for _ in range(40):
        damaged = bytearray(good)
        damaged[start + draw.randrange(4000)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt: damaged: entry archive/data/0") as caught:
            checkpoint.load(path)
        assert "copy it again" in str(caught.value)


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def program() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), file)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NO_CHECKPOINTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page.*the download failed"),
    "pointer": (lambda: POINTER, "pointer of git LFS.*git lfs pull"),
    "script": (lambda: b"#!/bin/sh\nexit 0\n", "no checkpoint, but a script"),
    "text": (lambda: b"not a checkpoint", "no checkpoint, but a text file"),
    "safetensors": (lambda: bytes([64, *[0] * 7]) + b'{"weight": {"dtype": "F32"}}'.ljust(64), "a safetensors file"),
    "code": (lambda: saved({"model": Code()}), r"holds posix\.system besides tensors.*refused"),
    "code, old format": (
        lambda: saved({"model": Code()}, _use_new_zipfile_serialization=False),
        r"holds posix\.system besides tensors.*refused",
    ),
    "program": (program, "a TorchScript program"),
    "list": (lambda: saved([1]), "holds a list"),
    "truncated": (lambda: saved({"weight": torch.randn(1000)})[:2000], "truncated or damaged"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit
def test_files_that_are_no_checkpoints(tmp_path: Path, kind: str) -> None:
    content, message = NO_CHECKPOINTS[kind]
    path = tmp_path / "bad.pt"
    path.write_bytes(content())
    with pytest.raises(CheckpointError, match=rf"bad\.pt: .*{message}") as caught:
        checkpoint.load(path)
    assert "weights_only" not in str(caught.value)  # torch advises to load code
    assert str(caught.value).count("\n") == 0


def test_a_missing_file_and_a_later_format(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match=r"last\.pt: no such checkpoint"):
        checkpoint.load(path)
    checkpoint.save({"format": 2, "config": {}}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt: has format 2.*update"):
        checkpoint.load(path)


def test_the_old_format_of_torch_loads(tmp_path: Path) -> None:
    weight = torch.randn(3)
    torch.save({"state_dict": {"weight": weight}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = checkpoint.load(tmp_path / "old.pth")["state_dict"]["weight"]
    torch.testing.assert_close(loaded, weight, rtol=0, atol=0)


def hold(folder: Path, ready: Connection) -> None:
    with claimed(folder, resume=False):
        (folder / "config.yaml").touch()
        ready.send(os.getpid())
        time.sleep(600)


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ready, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=hold, args=(folder, theirs))
    process.start()
    pid = ready.recv()
    try:
        for resume in (False, True):
            with (
                pytest.raises(ConfigError, match=rf"run is in use by process {pid} on .*another --folder"),
                claimed(folder, resume=resume),
            ):
                pass
    finally:
        os.kill(pid, signal.SIGKILL)
        process.join()
    with claimed(folder, resume=True):  # the file of the killed process does not lock
        assert f"process {os.getpid()} " in (folder / ".lock").read_text()


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "losses.csv", "metrics.csv"])
def test_records_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of a run")
    with (
        pytest.raises(ConfigError, match=rf"already holds a run \({name}\).*--resume"),
        claimed(tmp_path, resume=False),
    ):
        pass
    lost = pytest.raises(CheckpointError, match=rf"holds {name}, but no last\.pt")
    with nullcontext() if name == "last.pt" else lost, claimed(tmp_path, resume=True):
        pass
    assert (tmp_path / name).read_text() == "of a run"


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.part").write_bytes(b"half")
    with claimed(tmp_path, resume=True):
        assert not (tmp_path / ".last.pt.part").exists()


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data"), claimed(tmp_path / "run", resume=False):
        raise ValueError("data")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["a file", "below a file", "not writable"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.touch()
    folder = {"a file": file, "below a file": file / "run", "not writable": Path("/proc/run")}[place]
    with pytest.raises(OutputError, match=rf"{folder}: cannot be written"), claimed(folder, resume=False):
        pass


def test_resume_alone_names_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for hint in ("--folder DIR", "the last one is --folder runs/b"):
        assert hint in refused("train", "--resume")
        for age, name in enumerate(("b", "a")):
            (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / name / "last.pt").touch()
            os.utime(tmp_path / "runs" / name / "last.pt", (1000 - age, 1000 - age))
