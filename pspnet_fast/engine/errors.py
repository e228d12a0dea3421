"""Errors the user can fix: each names the thing, its value and the remedy; commands show them without traceback."""

from __future__ import annotations

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
