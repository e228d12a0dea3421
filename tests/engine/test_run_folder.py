"""The folder of a run: one process at a time, and nothing in it is overwritten."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from run_files import refused

from pspnet_fast.engine import CheckpointError, ConfigError
from pspnet_fast.engine.run_folder import claimed
from pspnet_fast.files import OutputError


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
