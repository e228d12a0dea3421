"""The folder that predict or export writes: which files in it are its own, and may be replaced."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InferenceError

MANIFEST = ".pspnet_fast_predictions"
"""A line of JSON for each file that was written to the folder: its path there, size, and digest."""


class OutputFolder:
    """Writes files into a folder, never over one that it did not write itself.

    A file is its own if the manifest names it with the digest that it has now; one that was edited since is not.

    Args:
        overwrite: allow to replace other files too.
        command: which writes, for the messages.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False, command: str = "predict") -> None:
        self.folder, self.overwrite, self.command = folder, overwrite, command
        self.own = read_manifest(folder)

    def prepare(self, files: Sequence[Path], inputs: Iterable[Path]) -> None:
        """Check that all ``files`` can be written, and make their folders, before any work is done.

        Raises:
            InferenceError: a file is one of the ``inputs``, is not the folder's own, or its folder cannot be written.
        """
        protected = {_identity(path): path for path in inputs if path.exists()}
        foreign = []
        for file in files:
            identity = _identity(file)
            if not os.path.lexists(file):  # a link that leads nowhere is the user's, too
                continue
            if identity in protected:
                raise InferenceError(f"{file} would replace the input {protected[identity]}: choose another --out")
            if file.is_dir():
                raise InferenceError(f"{file} is a folder, but a file is to be written there: choose another --out")
            if not self.overwrite and not self._is_own(file):
                foreign.append(file)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise InferenceError(
                f"{foreign[0]}{more}: exists and was not written by {self.command}, or was changed since; "
                "choose another --out, or replace what is there with --overwrite"
            )
        for folder in sorted({self.folder, *(file.parent for file in files)}):
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        with _writing(self.folder / MANIFEST):
            open(self.folder / MANIFEST, "a").close()

    def write(self, file: Path, content: bytes) -> None:
        """Write a file of the folder, whole or not at all.

        Raises:
            InferenceError: it cannot be written, for example because the disk is full.
        """
        part = file.with_name(f".{file.name}.part")
        entry = {"file": file.relative_to(self.folder).as_posix(), "size": len(content), "digest": _digest(content)}
        with _writing(file):
            try:
                part.write_bytes(content)
                # First the manifest: a crash in between leaves an entry that no file fits, not a file without one.
                with open(self.folder / MANIFEST, "a", encoding="utf-8") as manifest:
                    manifest.write(f"\n{json.dumps(entry)}\n")  # a line of its own, whatever a crash left before
                os.replace(part, file)
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)

    def _is_own(self, file: Path) -> bool:
        versions = self.own.get(file.relative_to(self.folder).as_posix(), {})
        try:
            return file.stat().st_size in versions.values() and _digest(file.read_bytes()) in versions
        except OSError:
            return False


def read_manifest(folder: Path) -> dict[str, dict[str, int]]:
    """What was written to the folder: for each file, by its path there, digest and size of all its versions."""
    own: dict[str, dict[str, int]] = {}
    with suppress(OSError):
        for line in (folder / MANIFEST).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # damaged lines name no file
                entry = json.loads(line)
                own.setdefault(str(entry["file"]), {})[str(entry["digest"])] = int(entry["size"])
    return own


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for all names of a file; None if there is no such file."""
    with suppress(OSError):
        return (status := path.stat()).st_dev, status.st_ino
    return None


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while ``path`` is written into :class:`InferenceError`."""
    try:
        yield
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror
        raise InferenceError(
            f"{path}: cannot be written ({reason or error}); free space, check the permissions, or choose another --out"
        ) from error
