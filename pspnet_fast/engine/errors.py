"""Errors the user can fix: each names the thing, its value and the remedy; commands show them without traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class UserError(Exception):
    """Base of the errors that the command line shows as one framed message (exit code 2)."""


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or made for another model."""


class InferenceError(UserError):
    """An image or folder that cannot be read or predicted."""


class DivergedError(UserError):
    """The training loss became infinite or not-a-number."""


class LoaderError(UserError):
    """A process that reads images ended."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU torch raises a plain RuntimeError then."""
    signs = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Cannot allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in signs)


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn the end of a loader process, which torch raises wherever the main thread is, into :class:`LoaderError`."""
    try:
        yield
    except RuntimeError as error:
        pattern = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: \w+|exited)"
        ended = re.search(pattern, f"{error.__cause__}\n{error}")
        if ended is None:
            raise
        raise LoaderError(
            f"loader process {ended[1]} {ended[2]}; where the machine ran out of memory, lower data.workers, "
            "data.crop or optim.batch_size"
        ) from error


def worker_message(error: Exception) -> str:
    """The message of an error raised in a loader process, without the traceback torch wraps around it."""
    text = str(error)
    return text.rpartition(f"{type(error).__name__}: ")[2].strip() if text.startswith("Caught ") else text
