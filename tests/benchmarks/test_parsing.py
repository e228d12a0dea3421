"""What the GPU suite reads from pytest, nvcc and compute-sanitizer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.gpu import sanitizer, sanitizer_cases
from benchmarks.gpu.junit import Counts, added, read_junit
from benchmarks.gpu.ptxas import kernel_resources
from benchmarks.gpu.sanitizer import command_of, find_sanitizer, own_kernels, read_report
from benchmarks.gpu.sanitizer_cases import DONE
from benchmarks.gpu.tests import runs_of

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" errors="1" failures="1" tests="9">
<testcase classname="ops.test_pool" name="test_pool[cuda-nchw]" time="0.1"/>
<testcase classname="ops.test_pool" name="test_pool[cuda-channels_last]">
  <failure message="worst at (1, 2)&#10;more">trace</failure></testcase>
<testcase classname="ops.test_pool" name="test_pool[triton-nchw]">
  <skipped type="pytest.skip" message="no bfloat16"/></testcase>
<testcase classname="ops.test_pool" name="test_pool[triton-channels_last]">
  <error message="fixture broke">trace</error></testcase>
<testcase classname="ops.test_pool" name="test_pool[cpu]"/>
<testcase classname="ops.test_concat" name="test_concat[composed-cuda-nchw]"/>
<testcase classname="ops.test_concat" name="test_concat[composed]"/>
<testcase classname="ops.test_backend" name="test_reasons[cuda-cpu]"/>
<testcase classname="nn.test_loss" name="test_sizes[reference_size]"/>
</testsuite></testsuites>"""


def test_junit_counts_by_back_end(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    outcome = read_junit(tmp_path / "junit.xml")
    assert outcome.backends == {
        "cuda": Counts(1, 1, 0),
        "triton": Counts(0, 1, 1),
        "cpu": Counts(1, 0, 0),
        "composed-cuda": Counts(1, 0, 0),
        "composed": Counts(1, 0, 0),
        "other": Counts(2, 0, 0),
    }
    assert outcome.failures == [
        "ops.test_pool::test_pool[cuda-channels_last]: worst at (1, 2)",
        "ops.test_pool::test_pool[triton-channels_last]: fixture broke",
    ]
    assert outcome.reasons == {"no bfloat16": 1}
    assert added([outcome, outcome])["cuda"] == {"passed": 2, "failed": 2, "skipped": 0}


def test_a_dry_run_is_a_short_one() -> None:
    assert any(run.parallel for run in runs_of("cuda", quick=False))
    assert not any(run.parallel for device in ("cuda", "cpu") for run in runs_of(device, quick=True))
    for run in runs_of("cuda", quick=False) + runs_of("cpu", quick=True):
        assert all((Path(__file__).parents[2] / path).exists() for path in run.arguments)


PTXAS = """[3/9] Building CUDA object CMakeFiles/_C.dir/csrc/cuda/a.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN1a12_GLOBAL__N_110fwd_kernelIfLi4EEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN1a12_GLOBAL__N_110fwd_kernelIfLi4EEEvPT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 9.1 ms
ptxas info    : Function properties for _ZN1a6helperEv
    99 bytes stack frame, 99 bytes spill stores, 99 bytes spill loads
ptxas info    : Compiling entry function 'plain' for 'sm_80'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, 400 bytes cmem[0]
"""


def test_ptxas_report() -> None:
    first, second = kernel_resources(PTXAS)
    assert "fwd_kernel" in first.pop("name")
    assert first == {
        "architecture": "sm_90", "registers": 168, "shared": 1024, "stack": 16, "spill_stores": 8, "spill_loads": 12,
    }  # fmt: skip
    assert second == {
        "name": "plain", "architecture": "sm_80", "registers": 32, "shared": 0, "stack": 0,
        "spill_stores": 0, "spill_loads": 0,
    }  # fmt: skip
    assert kernel_resources("nothing of the kind") == []


def test_ptxas_names_are_readable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demangler = tmp_path / "c++filt"
    demangler.write_text(
        '#!/bin/sh\nsed "s/_ZN.*/void a::(anonymous namespace)::fwd_kernel<float, 4>(a::Tables, float const*)/"\n'
    )
    demangler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("benchmarks.gpu.ptxas.shutil.which", lambda name: str(demangler) if name == "c++filt" else None)
    assert [kernel["name"] for kernel in kernel_resources(PTXAS)] == ["fwd_kernel<float, 4>", "plain"]


# ---- compute-sanitizer ----------------------------------------------------------------------------------------------

KERNELS = frozenset({"pool_fwd_kernel"})
OURS = """========= Invalid __global__ read of size 4 bytes
=========     at void pspnet_fast::cuda::pool_fwd_kernel<float>(const T1 *)+0x120 in pool.cu:12
=========     by thread (31,0,0) in block (3,0,0)
"""
THEIRS = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at void cublas_gemm<float>(const T1 *)+0x40
=========     by thread (0,0,0) in block (0,0,0)
"""
RACE = """========= Error: Race reported between Write access at pool_fwd_kernel+0x80 in pool.cu:40
=========     and Read access at pool_fwd_kernel+0xa0 in pool.cu:44 [96 hazards]
"""


@pytest.mark.parametrize(
    ("found", "summary", "finished", "clean"),
    [
        ("", "ERROR SUMMARY: 0 errors", True, True),
        ("", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True, True),
        (OURS, "ERROR SUMMARY: 1 error", True, False),
        (RACE, "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", True, False),
        (THEIRS, "ERROR SUMMARY: 1 error", True, True),  # a library's, which is told but not this project's
        ("", "ERROR SUMMARY: 2 errors", True, False),  # of unknown origin
        ("", "ERROR SUMMARY: 0 errors", False, False),  # the program crashed
        ("", "", True, False),  # the tool did
    ],
    ids=["memcheck", "racecheck", "ours", "race", "theirs", "unknown", "crash", "no summary"],
)
def test_sanitizer_report(found: str, summary: str, finished: bool, clean: bool) -> None:
    text = f"pyramid float32\n{found}{DONE if finished else 'Segmentation fault'}\n========= {summary}\n"
    report = read_report(text, KERNELS)
    assert report.clean is clean
    assert (len(report.ours), len(report.others)) == (int(found in (OURS, RACE)), int(found == THEIRS))


def test_own_kernels_are_found() -> None:
    names = own_kernels()
    assert "pyramid_pool_bwd_nchw_kernel" in names
    assert "atoms_nchw_fwd_kernel" in names


def test_sanitizer_is_looked_for_in_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_sanitizer() == str(program)
    assert command_of(str(program), "racecheck", "cuda")[:3] == [str(program), "--tool", "racecheck"]


def test_absent_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(sanitizer.sysconfig, "get_path", lambda name: "/nonexistent")
    assert find_sanitizer() is None


def test_sanitizer_cases_reach_every_operator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = set()
    for name in ("pyramid_pool", "pyramid_concat", "pyramid_conv", "dual_cross_entropy", "upsample_cross_entropy",
                 "upsample_argmax"):  # fmt: skip
        function = getattr(sanitizer_cases.pspnet_fast, name)

        def recorded(*args: object, _name: str = name, _function: object = function, **options: object) -> object:
            called.add(_name)
            return _function(*args, **options)  # type: ignore[operator]

        monkeypatch.setattr(sanitizer_cases.pspnet_fast, name, recorded)
    monkeypatch.setattr(sys, "argv", ["sanitizer_cases", "reference"])
    sanitizer_cases.main()
    assert len(called) == 6
    assert capsys.readouterr().out.splitlines()[-1] == DONE
