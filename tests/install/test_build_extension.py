"""buildtools: whatever fails, the install continues with a reason; only PSPNET_FAST_FORCE_CUDA=1 makes it stop.

CMake is a script here that answers as it would. Its own decision for or against the CUDA kernels is at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from buildtools.extension import (
    WIDTH,
    BuildError,
    BuildResult,
    TorchInfo,
    build_extension,
    csrc_digests,
    framed,
    job_count,
)

AddProgram = Callable[[str, str], Path]
TORCH = TorchInfo("2.99.0+cu130", "/somewhere/torch")

# Notes its arguments in $LOG; "-S" writes a configured tree's record, "--build" what a compiler would.
FAKE_CMAKE = """
echo "$@" >> "$LOG"
if [ "$1" = --build ]; then echo binary > "$2/_C.so"; exit 0; fi
mkdir -p "$4"
case "$*" in
  *CUDA=OFF*) problem="PSPNET_FAST_CUDA=OFF"; nvcc=""; arch="" ;;
  *) problem="$PROBLEM"; nvcc="13.0.88"; arch="90-real;90-virtual" ;;
esac
echo "{\\"file\\": \\"_C.so\\", \\"compiler\\": \\"GNU 12\\", \\"cuda_problem\\": \\"$problem\\",
 \\"nvcc\\": \\"$nvcc\\", \\"cuda_architectures\\": \\"$arch\\"}" > "$4/build_info.json"
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add_program: AddProgram) -> Path:
    """A machine with CMake and Ninja; the file gets CMake's command lines."""
    pytest.importorskip("pybind11")
    path = tmp_path / "cmake.log"
    monkeypatch.setenv("LOG", str(path))
    monkeypatch.setenv("PROBLEM", "")
    add_program("cmake", FAKE_CMAKE)
    add_program("ninja", "exit 0")
    return path


def build(tmp_path: Path, torch: TorchInfo | None = TORCH) -> BuildResult:
    return build_extension(torch, tmp_path / "lib" / "_C.so", tmp_path / "build")


def test_everything_is_built(log: Path, tmp_path: Path) -> None:
    result = build(tmp_path)
    assert (result.built, result.skipped) == (["cpu", "cuda"], {})
    assert (result.torch, result.compiler, result.nvcc) == (TORCH.version, "GNU 12", "13.0.88")
    assert result.cuda_architectures == ["90-real", "90-virtual"]
    assert result.digests == csrc_digests()
    assert result.digests["csrc"] != result.digests["cuda"]
    assert (tmp_path / "lib" / "_C.so").read_text() == "binary\n"
    configure, compile_ = log.read_text().splitlines()
    assert "-DPSPNET_FAST_TORCH=/somewhere/torch" in configure
    assert "-DPSPNET_FAST_CUDA=AUTO" in configure
    assert "--target _C" in compile_

    result.write(tmp_path / "package" / "_build_info.json")
    assert json.loads((tmp_path / "package" / "_build_info.json").read_text())["built"] == ["cpu", "cuda"]
    assert os.listdir(tmp_path / "package") == ["_build_info.json"]


def test_trees_of_two_torches_are_apart(log: Path, tmp_path: Path) -> None:
    build(tmp_path)
    build(tmp_path, TorchInfo("2.98.0", "/elsewhere/torch"))
    trees = {line.split()[3] for line in log.read_text().splitlines() if line.startswith("-S")}
    assert len(trees) == 2


REFUSAL = "nvcc error: unsupported GNU version"
FAILS = 'case "$*" in *CUDA={}*) echo "{}"; exit 1;; esac'


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("options", "script", "reason"),
    [
        ({"PROBLEM": "no nvcc was found"}, "", "no nvcc was found"),
        ({"PSPNET_FAST_CUDA": "OFF"}, "", "PSPNET_FAST_CUDA=OFF"),
        ({}, FAILS.format("AUTO", REFUSAL), f"the CUDA build failed: {REFUSAL}"),
    ],
)
def test_without_cuda_the_cpu_kernels_are_built(
    tmp_path: Path, add_program: AddProgram, monkeypatch: pytest.MonkeyPatch, options: dict, script: str, reason: str
) -> None:
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    add_program("cmake", script + FAKE_CMAKE)
    result = build(tmp_path)
    assert (result.built, result.skipped, result.nvcc) == (["cpu"], {"cuda": reason}, None)


def test_no_compiler(log: Path, tmp_path: Path, add_program: AddProgram) -> None:
    add_program("cmake", "echo 'CMake Error at CMakeLists.txt:11 (project):\n  No CMAKE_CXX_COMPILER found.'; exit 1")
    result = build(tmp_path)
    assert result.built == []
    assert set(result.skipped) == {"cpu", "cuda"}
    assert "No CMAKE_CXX_COMPILER found" in result.skipped["cpu"]
    assert not (tmp_path / "lib").exists()


@pytest.mark.usefixtures("configure")
def test_no_compiler_with_the_real_cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    result = build(tmp_path)
    assert result.built == []
    assert "CXX" in result.skipped["cpu"]


def test_no_torch(tmp_path: Path) -> None:
    result = build(tmp_path, torch=None)
    assert (result.torch, result.built) == (None, [])
    assert "install torch, then this package again" in result.skipped["cpu"]


def test_no_cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "cmake was not found; run `pip install cmake" in build(tmp_path).skipped["cuda"]


@pytest.mark.parametrize(
    ("torch", "message"),
    [(None, "PSPNET_FAST_FORCE_CUDA=1, but the environment has no torch"), (TORCH, "CUDA is required, but no nvcc")],
)
def test_forced_cuda_fails_without_it(
    log: Path, tmp_path: Path, add_program: AddProgram, monkeypatch: pytest.MonkeyPatch, torch: TorchInfo, message: str
) -> None:
    monkeypatch.setenv("PSPNET_FAST_FORCE_CUDA", "1")
    add_program("cmake", FAILS.format("ON", "CMake Error: CUDA is required, but no nvcc was found") + FAKE_CMAKE)
    with pytest.raises(BuildError, match=message):
        build(tmp_path, torch)


@pytest.mark.parametrize(
    ("wanted", "free_gigabytes", "cores", "jobs"),
    [(None, 64, 8, 8), (None, 13, 8, 4), (None, 1, 8, 1), (None, 64, 2, 2), ("3", 1, 1, 3)],
)
def test_jobs_are_capped_by_cores_and_free_memory_unless_asked_for(
    wanted: str | None, free_gigabytes: int, cores: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wanted is not None:
        monkeypatch.setenv("MAX_JOBS", wanted)
    answers = {"SC_AVPHYS_PAGES": free_gigabytes << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", answers.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert job_count() == jobs


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_jobs_that_are_no_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(BuildError, match=f"MAX_JOBS must be a positive integer, not '{value}'"):
        job_count()


# ---- the summary -----------------------------------------------------------------------------------------------------


def summary(*arguments: Any) -> list[str]:
    return [line.strip("| ") for line in framed(BuildResult(*arguments)).splitlines()[1:4]]


def test_what_was_built_and_why_the_rest_was_not() -> None:
    first = ["pspnet_fast, for torch 2.99.0", "CPU kernels (C++)  built: GNU 12.2.0"]
    full = summary("2.99.0", ["cpu", "cuda"], {}, "GNU 12.2.0", "13.0.88", ["90-real", "90-virtual"])
    assert full == [*first, "CUDA kernels       built: nvcc 13.0.88, 90-real 90-virtual"]
    half = summary("2.99.0", ["cpu"], {"cuda": "no nvcc was found"}, "GNU 12.2.0")
    assert half == [*first, "CUDA kernels       NOT built: no nvcc was found"]
    nothing = summary(None, [], {"cpu": "no g++", "cuda": "no torch"})
    first = ["pspnet_fast, for torch (none found)", "CPU kernels (C++)  NOT built: no g++"]
    assert nothing == [*first, "CUDA kernels       NOT built: no torch"]


def test_the_frame_is_closed_around_long_reasons() -> None:
    reason = "error: " + "/a/very/long/path" * 20 + " is not a compiler " * 10
    lines = framed(BuildResult("2.99.0", [], {"cpu": reason, "cuda": reason})).splitlines()
    assert {len(line) for line in lines} == {WIDTH}
    assert all(line[0] + line[-1] in ("||", "++") for line in lines)


# ---- CMake's decision for or against the CUDA kernels, with an nvcc that is a script ---------------------------------

Configure = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
NVCC_12_4 = "echo 'Cuda compilation tools, release 12.4, V12.4.131'"
MAJOR = str(torch.version.cuda).split(".")[0]
needs_cuda = pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")
needs_another_major = pytest.mark.skipif(MAJOR in ("None", "12"), reason="12.4 is no other major for this torch")


def problem(tree: Path) -> str:
    answer: str = json.loads((tree / "build_info.json").read_text())["cuda_problem"]
    return answer


@needs_another_major
def test_nvcc_of_another_major(configure: Configure, add_program: AddProgram, tmp_path: Path) -> None:
    add_program("nvcc", NVCC_12_4)
    done = configure(ROOT, tmp_path / "tree", "AUTO")
    assert done.returncode == 0, done.stdout + done.stderr
    told = problem(tmp_path / "tree")
    assert "nvcc is of release 12.4, but torch was built with CUDA" in told
    assert told.endswith(f"set CUDA_HOME to a toolkit of CUDA {MAJOR}")

    done = configure(ROOT, tmp_path / "required", "ON")
    assert done.returncode != 0
    assert "CUDA is required, but" in done.stderr
    assert "release 12.4" in done.stderr


@needs_cuda
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "CUDACXX"])
def test_environment_goes_before_the_path(
    configure: Configure, variable: str, add_program: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    named = add_program("nvcc", "exit 1").rename(tmp_path / "toolkit" / "bin" / "nvcc")
    add_program("nvcc", NVCC_12_4)
    monkeypatch.setenv(variable, str(named if variable == "CUDACXX" else named.parents[1]))
    configure(ROOT, tmp_path / "tree", "AUTO")
    assert problem(tmp_path / "tree") == f"{named} does not run"


@needs_another_major
def test_a_tree_looks_for_nvcc_again(
    configure: Configure, add_program: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the remedy that the message names would not help."""
    add_program("nvcc", "exit 1")
    configure(ROOT, tmp_path / "tree", "AUTO")
    assert problem(tmp_path / "tree").endswith("does not run")
    add_program("nvcc", NVCC_12_4).rename(tmp_path / "nvcc")
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    configure(ROOT, tmp_path / "tree", "AUTO")
    assert "release 12.4" in problem(tmp_path / "tree")
