"""CMake's decision for or against the CUDA kernels, by configuring with an nvcc that is a script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from building import ROOT, AddProgram, configure

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")

NVCC_12_4 = "echo 'Cuda compilation tools, release 12.4, V12.4.131'"


def problem(tree: Path) -> str:
    answer: str = json.loads((tree / "build_info.json").read_text())["cuda_problem"]
    return answer


@pytest.fixture
def torch_major() -> str:
    major = str(torch.version.cuda).split(".")[0]
    if major == "12":
        pytest.skip("12.4 is no other major version for this torch")
    return major


def test_nvcc_of_another_major(cmake: str, torch_major: str, add_program: AddProgram, tmp_path: Path) -> None:
    add_program("nvcc", NVCC_12_4)
    done = configure(cmake, ROOT, tmp_path / "tree", "AUTO")
    assert done.returncode == 0, done.stdout + done.stderr
    told = problem(tmp_path / "tree")
    assert "nvcc is of release 12.4, but torch was built with CUDA" in told
    assert told.endswith(f"set CUDA_HOME to a toolkit of CUDA {torch_major}")


def test_nvcc_of_another_major_where_cuda_is_a_must(
    cmake: str, torch_major: str, add_program: AddProgram, tmp_path: Path
) -> None:
    add_program("nvcc", NVCC_12_4)
    done = configure(cmake, ROOT, tmp_path / "tree", "ON")
    assert done.returncode != 0
    assert "CUDA is required, but" in done.stderr
    assert "release 12.4" in done.stderr


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "CUDACXX"])
def test_environment_goes_before_the_path(
    cmake: str, variable: str, add_program: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_program("nvcc", NVCC_12_4)
    named = tmp_path / "toolkit" / "bin" / "nvcc"
    named.parent.mkdir(parents=True)
    named.write_text("#!/bin/sh\nexit 1\n")
    named.chmod(0o755)
    monkeypatch.setenv(variable, str(named if variable == "CUDACXX" else named.parents[1]))
    configure(cmake, ROOT, tmp_path / "tree", "AUTO")
    assert problem(tmp_path / "tree") == f"{named} does not run"


def test_a_tree_looks_for_nvcc_again(
    cmake: str, torch_major: str, add_program: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the remedy that the message names would not help."""
    add_program("nvcc", "exit 1")
    configure(cmake, ROOT, tmp_path / "tree", "AUTO")
    assert problem(tmp_path / "tree").endswith("does not run")
    add_program("nvcc", NVCC_12_4).rename(tmp_path / "nvcc")
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    configure(cmake, ROOT, tmp_path / "tree", "AUTO")
    assert "release 12.4" in problem(tmp_path / "tree")


def test_switched_off(cmake: str, tmp_path: Path) -> None:
    configure(cmake, ROOT, tmp_path / "tree", "OFF")
    assert problem(tmp_path / "tree") == "PSPNET_FAST_CUDA=OFF"
