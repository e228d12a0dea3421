"""The folder of a run, which one process at a time writes, and its checkpoints.

A checkpoint survives a crash in the middle of writing, and loads without running code.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pspnet_fast.files import check_archive, output_errors, read_torch_file, replacing

from .config import TrainConfig
from .errors import CheckpointError, ConfigError, DivergedError

FORMAT = 1  # of the checkpoints that are written; a reader refuses later ones


def save(state: Mapping[str, Any], path: str | Path, *, keep: int = 0) -> None:
    """Write ``state`` so that ``path`` holds either the old content or the new one, never a part.

    The old content is kept until the new file is complete and its checksums are verified.

    Args:
        keep: so many of the states that were saved stay next to ``path``, the latest, as ``step-N.pt``.

    Raises:
        DivergedError: a tensor holds infinity or not-a-number.
        CheckpointError: the disk is full or the folder cannot be written.
    """
    entry = non_finite_entry(state)
    if entry is not None:
        raise DivergedError(
            f"{entry} is not finite after step {state.get('step')}: training diverged, {path} is not overwritten. "
            "Lower optim.lr, raise optim.warmup_steps, or compute with run.amp=none"
        )
    try:
        with replacing(path, "wb", verify=check_archive) as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError, ValueError) as error:  # torch raises RuntimeError where a write fails
        reason = str(error) if str(path) in str(error) else f"{path}: cannot be written ({_first_line(error)})"
        raise CheckpointError(f"{reason}; the checkpoint before it is kept") from error
    if keep:
        _keep(Path(path), int(state["step"]), keep)


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors, numbers, text and containers, no code.

    Raises:
        CheckpointError: no such file, or not a checkpoint that can be read safely, or one of a later format.
    """
    try:
        state = read_torch_file(path, device)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint; a run folder holds last.pt and best.pt") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint's dictionary")
    if "config" in state and state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']!r}, this version reads format {FORMAT}; update pspnet-fast"
        )
    return state


@contextmanager
def interpreting(path: str | Path) -> Iterator[None]:
    """Turn what missing or unexpected entries raise into :class:`CheckpointError`."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path}: has no entry {error}; pspnet-fast train did not write it") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not hold what pspnet-fast train writes ({_first_line(error)})") from error


def non_finite_entry(state: Mapping[str, Any]) -> str | None:
    """The name of the first tensor that holds infinity or not-a-number; ``None`` if all are finite."""
    # A float64 sum is finite exactly if every element is: a float32 tensor's cannot overflow it.
    sums = [
        (name, value.detach().sum(dtype=torch.float64))
        for name, value in _tensors(state, "")
        if value.is_floating_point()
    ]
    return next((name for name, total in sums if not math.isfinite(float(total))), None)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The random streams that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the streams of :func:`rng_state`; the stream of a device that was not in use then is left alone."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _keep(path: Path, step: int, count: int) -> None:
    """A second name for the content, which the next save leaves alone; the oldest such files above ``count`` go."""
    named = path.with_name(f"step-{step}.pt")
    with output_errors(named):
        named.unlink(missing_ok=True)
        try:
            os.link(path, named)
        except OSError:  # a file system without links
            shutil.copyfile(path, named)
        kept = {int(found[1]): file for file in path.parent.glob("step-*.pt") if (found := _STEP.fullmatch(file.name))}
        for old in sorted(kept)[:-count]:
            kept[old].unlink()


_STEP = re.compile(r"step-(\d+)\.pt")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


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
