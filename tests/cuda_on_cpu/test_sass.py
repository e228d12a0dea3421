"""Machine code, counted and not timed: kernels that stream a map have loads under way, and nothing is spilled."""

from __future__ import annotations

import re

import pytest
from compiling import BUILD, CUDA, HERE
from counters_page import AGAIN, ARCHITECTURES, KERNEL_COLUMNS, PAGE, code_cells
from mutant import Mutant
from sass import Kernel, compile_kernels, missing_tool, nvcc_version
from selection import ALL

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=f"{missing_tool()}")
LEAST_UNDER_WAY = 4
# Kernels that read a map from one end to the other, by file and by what their names hold. What remains of pooling's
# backward writes one, and reads bins.
STREAMING = {
    "pyramid_pool_nchw": "_fwd_|, 1>",
    "pyramid_pool_nhwc": "_fwd_|, 1>",
    "pyramid_concat_nchw": "_fwd_",
    "pyramid_concat_nhwc": "_fwd_",
    "pyramid_concat_nchw_bwd": "_bwd_",
    "pyramid_concat_nhwc_bwd": "_bwd_",
    "upsample_add": "_fwd_",
    "upsample_add_bwd": "_bwd_",
}
SOON_COMPILED = [*STREAMING, "upsample_argmax", "upsample_softmax_add"]


def problems(kernels: list[Kernel]) -> list[str]:
    few = [f"{k.name}: {k.under_way} loads under way" for k in kernels if k.loops and k.under_way < LEAST_UNDER_WAY]
    return few + [f"{k.name}: {k.spilled} bytes spilled" for k in kernels if k.spilled]


@pytest.mark.parametrize("unit", STREAMING)
def test_streaming_kernels_keep_loads_under_way(unit: str) -> None:
    kernels = compile_kernels(CUDA / f"{unit}.cu", "sm_90")
    streaming = [kernel for kernel in kernels if re.search(STREAMING[unit], kernel.name)]
    assert len(streaming) >= 6
    assert problems(streaming) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES if ALL else ARCHITECTURES[:1])
@pytest.mark.parametrize("unit", sorted(path.stem for path in CUDA.glob("*.cu")) if ALL else SOON_COMPILED)
def test_page_is_what_is_compiled(unit: str, architecture: str) -> None:
    """docs/counters.md has the registers, the stack and the loops of the kernels that it names."""
    text = PAGE.read_text()
    if f"nvcc {nvcc_version()}" not in text:
        pytest.skip(f"not the nvcc that docs/counters.md is of: {nvcc_version()}")
    rows = [line[2:].removesuffix(" |").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    page = {row[0].strip("`"): row[5:] for row in rows if len(row) == len(KERNEL_COLUMNS)}
    named = [kernel for kernel in compile_kernels(CUDA / f"{unit}.cu", architecture) if kernel.name in page]
    assert named
    for kernel in named:
        there = [(cell.split(" / ") * 2)[ARCHITECTURES.index(architecture)] for cell in page[kernel.name]]
        found = code_cells(32, 0, {architecture: kernel})
        there[2] = found[2]  # the launch decides, too, how many warps there are
        assert there == found, f"{kernel.name}: {AGAIN}"


def test_a_serialised_kernel_is_found() -> None:
    """The pooling kernels, whose loads are issued one by one."""
    file, changed = "pyramid_pool_nhwc.cu", ("kUnderWay = 4;", "kUnderWay = 1;")
    fault = Mutant("sass_serialised", file, *changed, "", "", every_type=True)
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
