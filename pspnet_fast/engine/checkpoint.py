"""Checkpoints that survive a crash in the middle of writing, and that load without running code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError


def save(state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` so that ``path`` holds either the old content or the new one, never a part.

    The bytes go to a neighbouring temporary file, reach the disk (fsync), and only then take the name.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; ``path`` keeps its old content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        remedy = "free space, or choose another --folder"
        raise CheckpointError(f"{path}: the checkpoint could not be written ({error}); {remedy}") from error


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: tensors, numbers, text and containers, no code.

    Raises:
        CheckpointError: no such file, or not a checkpoint that can be read safely.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; a run folder holds last.pt and best.pt")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}); copy it again") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint's dictionary")
    return state


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The random streams that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put back what :func:`rng_state` took; the stream of a device that was not in use then is left alone."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX; elsewhere a folder cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
