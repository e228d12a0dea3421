"""Machine code, counted and not timed: kernels that stream a map have loads under way, and nothing is spilled."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import CUDA, HERE
from sass import Kernel, compile_kernels, missing_tool

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=f"{missing_tool()}")
LEAST_UNDER_WAY = 4


def problems(kernels: list[Kernel]) -> list[str]:
    few = [f"{k.name}: {k.under_way} loads under way" for k in kernels if k.loops and k.under_way < LEAST_UNDER_WAY]
    return few + [f"{k.name}: {k.spilled} bytes spilled" for k in kernels if k.spilled]


@pytest.mark.parametrize("name", ["pyramid_pool_nchw", "pyramid_pool_nhwc"])
def test_pooling_keeps_loads_under_way(name: str, tmp_path: Path) -> None:
    kernels = compile_kernels(CUDA / f"{name}.cu", "sm_90", tmp_path)
    streaming = [kernel for kernel in kernels if "_fwd_" in kernel.name]
    assert len(streaming) >= 8
    assert problems(streaming) == []
    assert [kernel.name for kernel in kernels if kernel.spilled] == []


def test_a_serial_loop_is_found(tmp_path: Path) -> None:
    batches, one_by_one = compile_kernels(HERE / "kernels/loads.cu", "sm_90", tmp_path)
    assert batches.under_way == 4
    assert problems([batches]) == []
    (problem,) = problems([one_by_one])
    assert "one_by_one" in problem
    assert "loads under way" in problem
