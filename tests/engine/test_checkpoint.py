"""Checkpoints: whole or not at all, and never code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pspnet_fast.engine import CheckpointError, checkpoint


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_round_trip(tmp_path: Path) -> None:
    state = {"weight": torch.randn(3), "step": 4, "config": {"lr": 0.1, "bins": [1, 2], "none": None}}
    checkpoint.save(state, tmp_path / "new" / "last.pt")
    loaded = checkpoint.load(tmp_path / "new" / "last.pt")
    torch.testing.assert_close(loaded.pop("weight"), state.pop("weight"), rtol=0, atol=0)
    assert loaded == state


@pytest.mark.parametrize("stage", ["write", "sync", "rename"])
def test_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)

    def crash(*args: Any, **kwargs: Any) -> None:
        if stage == "write":
            args[1].write(b"half of a checkpoint")
        raise KeyboardInterrupt

    target = {"write": (torch, "save"), "sync": (os, "fsync"), "rename": (os, "replace")}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(*target, crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path)["step"] == 1

    checkpoint.save({"step": 3}, path)
    assert checkpoint.load(path)["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"last\.pt.*No space left"):
        checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_load_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    with pytest.raises(CheckpointError, match=r"bad\.pt: no such"):
        checkpoint.load(path)

    checkpoint.save({"weight": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"bad\.pt: not a readable"):
        checkpoint.load(path)

    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"bad\.pt: not a readable"):
        checkpoint.load(path)

    torch.save([1], path)
    with pytest.raises(CheckpointError, match=r"holds a list"):
        checkpoint.load(path)


def test_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Code()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        checkpoint.load(tmp_path / "evil.pt")


def test_rng_state() -> None:
    device = torch.device("cpu")
    torch.manual_seed(3)
    state = checkpoint.rng_state(device)
    expected = torch.rand(4)
    torch.rand(9)
    checkpoint.restore_rng(state, device)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)
