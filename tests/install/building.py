"""What the tests of the build share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

AddProgram = Callable[[str, str], Path]
