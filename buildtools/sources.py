"""The digests of csrc that the build records, so that an installed package knows what it was compiled from."""

from __future__ import annotations

import runpy
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent


def csrc_digests(source: Path = SOURCE) -> dict[str, str | None]:
    """Digests of all of csrc, and of what the CUDA kernels are compiled from: csrc without csrc/cpu."""
    # By path: importing pspnet_fast would import torch, which an isolated build need not have.
    folder_digest = runpy.run_path(str(SOURCE / "pspnet_fast" / "digest.py"))["folder_digest"]
    csrc = source / "csrc"
    return {"csrc": folder_digest(csrc), "cuda": folder_digest(csrc, exclude=("cpu",))}
