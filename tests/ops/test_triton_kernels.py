"""Triton's kernels without a GPU: their index tables, and that every kernel compiles for NVIDIA's architectures.

What they compute is tested with the other back ends, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import INTERPRETED

pytest.importorskip("triton", reason="the package triton is not installed")

from pspnet_fast.triton.partition import LONGEST, partition, partition_axis

KERNELS = (
    "atoms_nchw_fwd_kernel",
    "atoms_nhwc_fwd_kernel",
    "bins_fwd_kernel",
    "bins_bwd_kernel",
    "atoms_nchw_bwd_kernel",
    "atoms_nhwc_bwd_kernel",
)
TILES = {"ROWS": 16, "COLUMNS": 64, "INTERVALS": 16, "CELLS": 16, "CHANNELS": 32, "ATOMS": 16}
TABLES = ("row_edge", "column_edge", "column_interval", "cell_table")


@given(n=st.integers(1, 200), bins=st.lists(st.integers(1, 20), min_size=1, max_size=5).map(tuple))
def test_intervals_make_up_every_bin(n: int, bins: tuple[int, ...]) -> None:
    axis = partition_axis(n, bins)
    assert axis.edge[0] == 0
    assert axis.edge[-1] == n
    assert list(axis.edge) == sorted(set(axis.edge))
    assert 1 <= axis.longest <= LONGEST
    for level, k in enumerate(bins):
        for i in range(k):
            begin, end = i * n // k, -((-(i + 1) * n) // k)
            first, last = axis.bin_range[level][i]
            assert (axis.edge[first], axis.edge[last], axis.bin_cells[level][i]) == (begin, end, end - begin)


def test_pspnet_at_473_pixels_has_36_atoms() -> None:
    cut = partition(60, 60, (1, 2, 3, 6), torch.device("cpu"))
    assert (cut.atoms, cut.cells) == (36, 50)
    assert cut.column_interval.tolist() == [w // 10 for w in range(60)]
    assert cut.cell[:, 0].tolist() == [0, 6, 0, 6, 60, 60]
    assert cut.cell[:, -1].tolist() == [5, 6, 5, 6, 10, 10]


def test_tables_are_made_once() -> None:
    arguments = 11, 7, (1, 2), torch.device("cpu")
    assert partition(*arguments) is partition(*arguments)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_ahead_of_time(name: str, dtype: str, capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pspnet_fast.triton import pyramid_pool

    kernel = getattr(pyramid_pool, name)
    signature = {argument: argument_type(argument, dtype) for argument in kernel.arg_names}
    tiles = {argument: TILES[argument] for argument in kernel.arg_names if argument in TILES}
    source = ASTSource(fn=kernel, signature=signature, constexprs=tiles)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 0
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])  # the order of every sum is fixed


def argument_type(argument: str, dtype: str) -> str:
    """A kernel argument's type, in Triton's spelling, by its name."""
    if argument in TILES:
        return "constexpr"
    if argument in TABLES:
        return "*i32"
    if argument == "atoms":
        return "*fp64" if dtype == "fp64" else "*fp32"
    return f"*{dtype}" if argument in ("x", "y", "grad", "dx") else "i32"


@pytest.mark.skipif(INTERPRETED, reason="the interpreter wraps kernels in another class")
def test_every_kernel_is_listed() -> None:
    from triton.runtime.jit import JITFunction

    from pspnet_fast.triton import pyramid_pool

    assert {name for name, value in vars(pyramid_pool).items() if isinstance(value, JITFunction)} == set(KERNELS)
