"""Builds under a made-up environment: another PATH, compilers that are scripts, no compiler at all."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from building import AddProgram

ENVIRONMENT = (
    "PSPNET_FAST_CUDA",
    "PSPNET_FAST_FORCE_CUDA",
    "MAX_JOBS",
    "TORCH_CUDA_ARCH_LIST",
    "CUDACXX",
    "CUDA_HOME",
    "CUDA_PATH",
)


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def add_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddProgram:
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
def cmake(monkeypatch: pytest.MonkeyPatch) -> str:
    """The real CMake, with Ninja and pybind11; pip's lie next to the interpreter, which need not be on the PATH."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    pytest.importorskip("pybind11")
    return str(shutil.which("cmake"))
