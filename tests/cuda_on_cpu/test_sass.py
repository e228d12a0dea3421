"""Machine code, counted and not timed: kernels that stream a map have loads under way, and nothing is spilled."""

from __future__ import annotations

import pytest
from compiling import BUILD, CUDA, HERE
from mutant import Mutant
from sass import Kernel, compile_kernels, missing_tool

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=f"{missing_tool()}")
LEAST_UNDER_WAY = 4
# Kernels that read a map from one end to the other, by file and by what their names hold.
STREAMING = {
    "pyramid_pool_nchw": "_fwd_",
    "pyramid_pool_nhwc": "_fwd_",
    "pyramid_concat_nchw": "_fwd_",
    "pyramid_concat_nhwc": "_fwd_",
    "pyramid_concat_nchw_bwd": "_bwd_",
    "pyramid_concat_nhwc_bwd": "_bwd_",
}


def problems(kernels: list[Kernel]) -> list[str]:
    few = [f"{k.name}: {k.under_way} loads under way" for k in kernels if k.loops and k.under_way < LEAST_UNDER_WAY]
    return few + [f"{k.name}: {k.spilled} bytes spilled" for k in kernels if k.spilled]


@pytest.mark.parametrize("unit", STREAMING)
def test_streaming_kernels_keep_loads_under_way(unit: str) -> None:
    kernels = compile_kernels(CUDA / f"{unit}.cu", "sm_90")
    streaming = [kernel for kernel in kernels if STREAMING[unit] in kernel.name]
    assert len(streaming) >= 6
    assert problems(streaming) == []


def test_a_serialised_kernel_is_found() -> None:
    """The pooling kernels, whose loads are issued one by one."""
    fault = Mutant("sass_serialised", "pyramid_pool_nhwc.cu", "kUnderWay = 4;", "kUnderWay = 1;", "", "")
    fault.plant()
    kernels = compile_kernels(BUILD / "mutants" / fault.name / fault.file, "sm_90")
    found = problems([kernel for kernel in kernels if "_fwd_" in kernel.name])
    assert len(found) >= 8
    assert all("1 loads under way" in problem for problem in found)


def test_a_serial_loop_is_found() -> None:
    batches, one_by_one = compile_kernels(HERE / "kernels/loads.cu", "sm_90")
    assert batches.under_way == 4
    assert problems([batches]) == []
    (problem,) = problems([one_by_one])
    assert "one_by_one" in problem
    assert "loads under way" in problem
