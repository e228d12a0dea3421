"""The folder of a run: its name, what may lie in it, and the lock that keeps a second process out."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pspnet_fast.files import output_errors

from .config import TrainConfig
from .errors import CheckpointError, ConfigError

LOCK = ".lock"
RECORDS = ("last.pt", "best.pt", "losses.csv", "metrics.csv")


def run_folder(config: TrainConfig, name: str, resume: bool) -> Path:
    """``run.folder``, or a new folder's name with date and time."""
    if config.run.folder is not None:
        return Path(config.run.folder)
    if resume:
        raise no_run_named()
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def no_run_named() -> ConfigError:
    """The error for a resume without a folder; names the run that was saved last, if there is one."""
    runs = sorted(Path("runs").glob("*/last.pt"), key=lambda path: path.stat().st_mtime)
    hint = f"; the last one is --folder {runs[-1].parent}" if runs else ""
    return ConfigError(f"--resume needs the run to continue: name its folder with --folder DIR{hint}")


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Create the folder, hold its lock, and remove what a killed process left half-written.

    The operating system releases the lock with the process, however that ends. Loader processes do not inherit it.

    Raises:
        ConfigError: another process trains in the folder, or it holds a run and ``resume`` is not set.
        CheckpointError: it holds records, but no ``last.pt`` to continue from.
        OutputError: it cannot be written.
    """
    new = not folder.exists()
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder / LOCK)
    try:
        _check_content(folder, resume)
        with output_errors(folder):
            for part in folder.glob(".*.part"):
                part.unlink()
        yield
    finally:
        if new and [path.name for path in folder.iterdir()] == [LOCK]:
            with suppress(OSError):  # the run ended before it had anything to record
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.close()


def _locked(path: Path) -> IO[str]:
    """The lock file, open, with this process's name in it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, started {datetime.datetime.now():%F %T}")
        file.flush()
    except OSError as error:
        with file:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            owner = file.read().strip() or "another process"
        raise ConfigError(
            f"{path.parent} is in use by {owner}: wait for it, stop it, or choose another --folder"
        ) from error
    return file


def _check_content(folder: Path, resume: bool) -> None:
    found = [name for name in RECORDS if (folder / name).exists()]
    if found and not resume:
        raise ConfigError(
            f"{folder} already holds a run ({', '.join(found)}): continue it with --resume, or choose another --folder"
        )
    if found and "last.pt" not in found:
        raise CheckpointError(
            f"{folder} holds {', '.join(found)}, but no last.pt to resume from: restore that file, or start in "
            "another --folder"
        )
