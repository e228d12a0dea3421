"""buildtools.cmake: whatever fails, the install continues with a reason; only PSPNET_FAST_FORCE_CUDA=1 makes it stop.

CMake is a script here that answers as it would.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from building import AddProgram

from buildtools.cmake import BuildError, BuildResult, build_extension, job_count
from buildtools.sources import csrc_digests
from buildtools.summary import WIDTH, framed
from buildtools.torch_info import TorchInfo

TORCH = TorchInfo("2.99.0+cu130", "/somewhere/torch", "13.0")

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


def test_trees_of_two_torches_are_apart(log: Path, tmp_path: Path) -> None:
    build(tmp_path)
    build(tmp_path, TorchInfo("2.98.0", "/elsewhere/torch", None))
    trees = {line.split()[3] for line in log.read_text().splitlines() if line.startswith("-S")}
    assert len(trees) == 2


def test_cuda_problem_leaves_the_cpu_kernels(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBLEM", "no nvcc was found")
    result = build(tmp_path)
    assert (result.built, result.skipped, result.nvcc) == (["cpu"], {"cuda": "no nvcc was found"}, None)


def test_cuda_is_left_out_on_request(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_FAST_CUDA", "OFF")
    assert build(tmp_path).skipped == {"cuda": "PSPNET_FAST_CUDA=OFF"}


def test_failing_cuda_build_leaves_the_cpu_kernels(log: Path, tmp_path: Path, add_program: AddProgram) -> None:
    refuses = 'case "$*" in *CUDA=AUTO*) echo "nvcc error: unsupported GNU version"; exit 1;; esac'
    add_program("cmake", refuses + FAKE_CMAKE)
    result = build(tmp_path)
    assert result.built == ["cpu"]
    assert result.skipped == {"cuda": "the CUDA build failed: nvcc error: unsupported GNU version"}


def test_no_compiler(log: Path, tmp_path: Path, add_program: AddProgram) -> None:
    add_program("cmake", "echo 'CMake Error at CMakeLists.txt:11 (project):\n  No CMAKE_CXX_COMPILER found.'; exit 1")
    result = build(tmp_path)
    assert result.built == []
    assert set(result.skipped) == {"cpu", "cuda"}
    assert "No CMAKE_CXX_COMPILER found" in result.skipped["cpu"]
    assert not (tmp_path / "lib").exists()


def test_no_compiler_with_the_real_cmake(cmake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_forced_cuda_fails_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_FAST_FORCE_CUDA", "1")
    with pytest.raises(BuildError, match=r"PSPNET_FAST_FORCE_CUDA=1, but the environment has no torch"):
        build(tmp_path, torch=None)


def test_forced_cuda_does_not_fall_back(
    log: Path, tmp_path: Path, add_program: AddProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPNET_FAST_FORCE_CUDA", "1")
    refuses = 'case "$*" in *CUDA=ON*) echo "CMake Error: CUDA is required, but no nvcc was found"; exit 1;; esac'
    add_program("cmake", refuses + FAKE_CMAKE)
    with pytest.raises(BuildError, match="CUDA is required, but no nvcc was found"):
        build(tmp_path)


def test_record_is_what_the_package_reads(log: Path, tmp_path: Path) -> None:
    build(tmp_path).write(tmp_path / "package" / "_build_info.json")
    record = json.loads((tmp_path / "package" / "_build_info.json").read_text())
    assert record["built"] == ["cpu", "cuda"]
    assert os.listdir(tmp_path / "package") == ["_build_info.json"]


@pytest.mark.parametrize(("free_gigabytes", "cores", "jobs"), [(64, 8, 8), (13, 8, 4), (1, 8, 1), (64, 2, 2)])
def test_jobs_are_capped_by_cores_and_free_memory(
    free_gigabytes: int, cores: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"SC_AVPHYS_PAGES": free_gigabytes << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", answers.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert job_count() == jobs


def test_jobs_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    assert job_count() == 3


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_jobs_that_are_no_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(BuildError, match=f"MAX_JOBS must be a positive integer, not '{value}'"):
        job_count()


# ---- the summary -----------------------------------------------------------------------------------------------------

FULL = BuildResult("2.99.0", ["cpu", "cuda"], {}, "GNU 12.2.0", "13.0.88", ["90-real", "90-virtual"])


def test_what_was_built() -> None:
    text = framed(FULL)
    assert "for torch 2.99.0" in text
    assert "CPU kernels (C++)  built: GNU 12.2.0" in text
    assert "CUDA kernels       built: nvcc 13.0.88, 90-real 90-virtual" in text
    assert "NOT" not in text


def test_why_the_rest_was_not() -> None:
    text = framed(BuildResult("2.99.0", ["cpu"], {"cuda": "no nvcc was found"}, "GNU 12.2.0"))
    assert "CPU kernels (C++)  built" in text
    assert "CUDA kernels       NOT built: no nvcc was found" in text


def test_without_torch() -> None:
    text = framed(BuildResult(None, [], {"cpu": "no torch", "cuda": "no torch"}))
    assert "for torch (none found)" in text
    assert text.count("NOT built: no torch") == 2


def test_the_frame_is_closed_around_long_reasons() -> None:
    reason = "error: " + "/a/very/long/path" * 20 + " is not a compiler " * 10
    lines = framed(BuildResult("2.99.0", [], {"cpu": reason, "cuda": reason})).splitlines()
    assert {len(line) for line in lines} == {WIDTH}
    assert all(line[0] + line[-1] in ("||", "++") for line in lines)
