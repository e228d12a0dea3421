"""Builds under a made-up environment: another PATH, compilers that are scripts, no compiler at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

OWN = ("PSPNET_FAST_CUDA", "PSPNET_FAST_FORCE_CUDA")
USUAL = ("MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDA_HOME", "CUDA_PATH")


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OWN, *USUAL):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def add_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script in front of the PATH under the name of a program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def add(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return add


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path, str], subprocess.CompletedProcess[str]]:
    """Configures the extension of a source folder in a tree, with PSPNET_FAST_CUDA as given, by the real CMake."""
    # pip's lie next to the interpreter, which need not be on the PATH.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    pytest.importorskip("pybind11")
    if missing := [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    cmake = str(shutil.which("cmake"))  # a test may put another in front of it

    def run(source: Path, tree: Path, cuda: str) -> subprocess.CompletedProcess[str]:
        command = [cmake, "-S", str(source), "-B", str(tree), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        return subprocess.run([*command, f"-DPSPNET_FAST_CUDA={cuda}"], capture_output=True, text=True, check=False)

    return run
