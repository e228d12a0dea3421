"""On which GPUs the kernels were tested, and whether they are still the same.

``verified.json`` next to this file is written by ``python -m benchmarks.gpu --save`` after all tests of the CUDA or
Triton kernels have passed on a GPU: an entry a device and kind of kernel, with the digest of its sources. That is
compared with what runs here: the digest of the CUDA sources that the build recorded when it compiled them, and that of
the Triton kernels as they lie in this folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pspnet_fast.digest import folder_digest
from pspnet_fast.extension import EXTENSION

VERIFIED = Path(__file__).with_name("verified.json")
KERNELS = {"cuda": "CUDA C++", "triton": "Triton"}


def current_digests(build_info: Mapping[str, Any] = EXTENSION.info) -> dict[str, str | None]:
    """Digests of the kernels that run here, by back end; None for CUDA kernels that were not compiled."""
    cuda = None
    if "cuda" in build_info.get("built", ()):
        cuda = build_info.get("digests", {}).get("cuda") or "not recorded"  # by a build of an older version
    return {"cuda": cuda, "triton": folder_digest(Path(__file__).with_name("triton"))}


def read_verified(path: Path = VERIFIED) -> list[dict[str, Any]]:
    """The entries of ``verified.json``; none where it does not exist or cannot be read."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def verification(entries: Sequence[Mapping[str, Any]], current: Mapping[str, str | None]) -> list[str]:
    """A line for each device that kernels were tested on, and one for kernels that were tested on none."""
    lines = [
        f"{_titles(entry['digest'])} verified on {entry['device']} at {entry['commit']} on {entry['date']}; "
        f"{_since(entry['digest'], current)}"
        for entry in entries
    ]
    untested = [name for name in KERNELS if not any(name in entry["digest"] for entry in entries)]
    if untested:
        lines.append(f"the tests of the {_titles(untested)} kernels have not all passed on a GPU yet")
    return lines


def _titles(names: Iterable[str]) -> str:
    return " and ".join(title for name, title in KERNELS.items() if name in names)


def _since(tested: Mapping[str, str], current: Mapping[str, str | None]) -> str:
    """Whether the kernels that run here are those that were tested."""
    changed = [name for name, digest in tested.items() if current[name] not in (None, digest)]
    absent = [name for name in tested if current[name] is None]
    if changed:
        return f"kernels changed since ({_titles(changed)})"
    if absent:
        return f"kernels unchanged since (but there are no {_titles(absent)} kernels here)"
    return "kernels unchanged since"
