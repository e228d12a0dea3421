"""The scripts that try many cases, with few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("script", "arguments"), [("kill_and_resume", "--kills 3"), ("fuzz_files", "--cases 24")])
def test_script(script: str, arguments: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *arguments.split()]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
