"""Folders and text files of a data set: walking them, and reading text in whatever encoding an editor saved it."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from pspnet_fast.data.classes import DatasetError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def expand(path: str | Path) -> Path:
    """The path with `~` and `~user` replaced by the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{path}: {error}; write the folder in full") from None


def walk_files(folder: Path, _above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder, in the order of their paths.

    Links are followed, except to a folder that contains the link. Names that begin with a dot are skipped, with what is
    below them: editors, notebooks and file systems keep their own copies there.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    above = _above | {os.path.realpath(folder)}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be listed ({error.strerror or error})") from error

    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):  # a link may point at itself
            yield folder / entry.name
        elif os.path.realpath(entry.path) not in above:
            yield from walk_files(folder / entry.name, above)


def read_lines(path: Path) -> tuple[list[str], str]:
    """The lines of a text file, and its encoding.

    A byte-order mark decides; without one, zero bytes mean UTF-16. Text that is not UTF-8 is read as Latin-1, in which
    any bytes are text: say so where a name from such a file is not found.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error

    encodings = [encoding for mark, encoding in _MARKS if raw.startswith(mark)][:1]
    if not encodings and b"\0" in raw:
        encodings = ["utf-16-le" if raw[1:2] == b"\0" else "utf-16-be"]
    for encoding in (*encodings, "utf-8", "latin-1"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        break
    # Not splitlines(): it also splits at characters that names in other encodings may hold.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), encoding
