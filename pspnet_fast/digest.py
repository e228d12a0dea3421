"""A digest of the kernels' sources: whether what was tested on a GPU is what runs here.

Standard library alone, and nothing of this package: the build calls it too (buildtools/extension.py), where torch may
be missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

SOURCES = (".cpp", ".cu", ".cuh", ".h", ".py")


def folder_digest(folder: Path, exclude: Sequence[str] = ()) -> str | None:
    """SHA-256 over the sorted relative paths and contents of the source files under ``folder``; None if there are none.

    Args:
        folder: searched with its subfolders.
        exclude: names of subfolders of ``folder`` to leave out.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in SOURCES}
    names = sorted(name for name in paths if name.split("/")[0] not in exclude)
    digest = hashlib.sha256()
    for name in names:
        content = paths[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest() if names else None
