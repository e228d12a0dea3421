"""Files that are whole: written completely or not at all, and torch files that are verified before they are used."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import torch


class OutputError(OSError):
    """A file that cannot be written; the message names the path, the reason and the remedy."""


@contextmanager
def replacing(
    path: str | Path, mode: Literal["w", "wb"] = "w", verify: Callable[[Path], None] | None = None
) -> Iterator[IO[Any]]:
    """Open a file for writing; ``path`` gets the new content when the block ends without error, else keeps its own.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), and only then take the name.

    Args:
        verify: called with the temporary file before it takes the name; raises if the content is wrong.

    Raises:
        OutputError: the folder or the file cannot be written, or the disk is full.
    """
    target, part = _places(path)
    _check_kind(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode, encoding="utf-8" if mode == "w" else None, newline="" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(part)
        os.replace(part, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def check_writable(path: str | Path) -> None:
    """Raise :class:`OutputError` unless :func:`replacing` can write ``path``; makes its folder.

    For the result of long work: a path that cannot be written is found before the work.
    """
    _check_kind(path)
    with output_errors(path):
        target, part = _places(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()


@contextmanager
def output_errors(path: str | Path) -> Iterator[None]:
    """Turn the operating system's errors while ``path`` is written into :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def read_torch_file(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """What ``torch.save`` wrote, read with ``weights_only=True``: tensors, numbers, text and containers, no code.

    The checksums of the archive are compared first, as torch itself ignores them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, is damaged, or would run code; the message names path and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    for matches, kind in _OTHER_KINDS:
        if matches(start):
            raise ValueError(f"{path}: no checkpoint, but {kind}")
    if start.startswith(b"PK\x03\x04"):
        check_archive(path)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path}: holds {found[1] if found else 'objects'} besides tensors, numbers and text. Loading that would "
            "run code from the file, so it is refused; save model.state_dict() alone where the file was made"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ValueError(f"{path}: no checkpoint, or damaged ({reason}); copy it again") from error


def check_archive(path: Path) -> None:
    """Compare the checksum (CRC-32) of every entry of a zip file; ``ValueError`` names the first that differs."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = archive.namelist()
    except Exception as error:  # zipfile raises what the damaged bytes happen to mean
        raise ValueError(f"{path}: truncated or damaged ({error}); copy it again") from error
    if damaged is not None:
        raise ValueError(f"{path}: damaged: entry {damaged} does not have its checksum; copy it again")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(f"{path}: a TorchScript program, no checkpoint; save model.state_dict() where it was made")


def _is_text(start: bytes) -> bool:
    return all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start)


# The first bytes of files that are given as checkpoints by mistake, the most specific first.
_OTHER_KINDS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda start: not start, "an empty file; copy it again"),
    (
        lambda start: start.startswith(b"version https://git-lfs"),
        "a pointer of git LFS; fetch the file itself with 'git lfs pull'",
    ),
    (
        lambda start: start.lstrip()[:1] == b"<",
        "a web page (HTML or XML); the download failed or needs the address of the file itself",
    ),
    (lambda start: start.startswith(b"#!"), "a script"),
    (
        lambda start: start[8:9] == b"{",
        "a safetensors file; load it with safetensors.torch and torch.save that",
    ),
    (_is_text, "a text file"),
)


def _places(path: str | Path) -> tuple[Path, Path]:
    """The file behind ``path``, so that a link stays a link, and the temporary file in its folder."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(f".{target.name}.part")


def _check_kind(path: str | Path) -> None:
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path}: cannot be written, as it is a {'folder' if os.path.isdir(path) else 'device'}")
    if os.path.isfile(path) and not os.access(path, os.W_OK):
        raise OutputError(f"{path}: cannot be written, as the file is read-only; choose another path")


def _unwritable(path: str | Path, error: OSError) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot be written ({reason}); free space, check permissions, or choose another folder")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX; elsewhere a folder cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
