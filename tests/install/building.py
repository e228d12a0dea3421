"""What the tests of the build share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

AddProgram = Callable[[str, str], Path]


def configure(cmake: str, source: Path, tree: Path, cuda: str) -> subprocess.CompletedProcess[str]:
    """Configure the extension of a source folder in ``tree``, with PSPNET_FAST_CUDA as given."""
    command = [cmake, "-S", str(source), "-B", str(tree), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    return subprocess.run([*command, f"-DPSPNET_FAST_CUDA={cuda}"], capture_output=True, text=True, check=False)
