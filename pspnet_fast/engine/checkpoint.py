"""Checkpoints that survive a crash in the middle of writing, and that load without running code."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.files import check_archive, output_errors, read_torch_file, replacing

from .errors import CheckpointError, DivergedError

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
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}[{index}]")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
