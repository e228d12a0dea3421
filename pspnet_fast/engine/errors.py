"""What a user can mend. Such an error names the thing, its value and the remedy; commands show it without traceback."""

from __future__ import annotations


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
