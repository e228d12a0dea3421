"""Triton's kernels without a GPU: their index tables, and that every kernel compiles for NVIDIA's architectures.

What they compute is tested with the other back ends, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import INTERPRETED
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

from pspnet_fast.geometry import LONGEST, bilinear_taps, partition_axis
from pspnet_fast.triton import pyramid_concat, pyramid_conv, tables, upsample_add
from pspnet_fast.triton.cells import _cut_axis, cut_axis
from pspnet_fast.triton.partition import _partition, partition
from pspnet_fast.triton.pyramid_taps import _pyramid_taps, pyramid_taps

CPU = torch.device("cpu")
KERNELS = {
    "pyramid_pool": (
        "atoms_nchw_fwd_kernel",
        "atoms_nhwc_fwd_kernel",
        "bins_fwd_kernel",
        "bins_bwd_kernel",
        "atoms_nchw_bwd_kernel",
        "atoms_nhwc_bwd_kernel",
    ),
    "pyramid_concat": ("pyramid_concat_fwd_kernel", "pyramid_concat_bwd_kernel"),
    "pyramid_conv_fwd": ("q_fwd_kernel", "pyramid_conv_fwd_kernel"),
    "pyramid_conv_bwd": (
        "r_bwd_kernel",
        "q_bwd_kernel",
        "weight_bwd_kernel",
        "levels_bwd_kernel",
    ),
    "cross_entropy_fwd": ("cross_entropy_fwd_kernel",),
    "cross_entropy_bwd": ("cross_entropy_bwd_kernel",),
    "upsample_add": ("upsample_add_fwd_kernel", "upsample_add_bwd_kernel"),
    "upsample_argmax": ("upsample_argmax_kernel",),
    "upsample_softmax_add": ("upsample_softmax_add_kernel",),
}
# Compile-time arguments: the tiles, and a training step's options; then everything that a kernel can compute.
TILES = {
    "ROWS": 8, "COLUMNS": 32, "INTERVALS": 16, "CELLS": 32, "BINS": 32, "PIXELS": 32,
    "CHANNELS": 32, "ATOMS": 16, "CLASSES": 8, "SIDE": 16,
    "KERNEL_HEIGHT": 3, "KERNEL_WIDTH": 3, "EPS": 1e-5, "LOWEST": -3e38,
}  # fmt: skip
SWITCHES = ("SMOOTHING", "PIXEL_WEIGHTS", "ADD", "ROW_TABLE", "COLUMN_TABLE")
ABSENT = ("pixel_weight", "class_table", "main_loss", "aux_loss", "correct", "mean", "var", "gamma", "beta")
EVERYTHING = TILES | {"PARITY": 1} | dict.fromkeys(SWITCHES, True)
PLAIN = TILES | {"PARITY": 0} | dict.fromkeys(SWITCHES, False) | dict.fromkeys(ABSENT)
OPTIONAL = (
    "cross_entropy_fwd_kernel", "cross_entropy_bwd_kernel", "atoms_nchw_bwd_kernel", "atoms_nhwc_bwd_kernel",
    "pyramid_conv_fwd_kernel", "upsample_softmax_add_kernel", "upsample_add_fwd_kernel",
)  # fmt: skip
BUILDS = [(module, name, False) for module, names in KERNELS.items() for name in names]
BUILDS += [(module, name, True) for module, name, _ in BUILDS if name in OPTIONAL]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
# Arguments by type, where it is not a number.
MAPS = ("x", "y", "base", "grad", "dx", "main", "aux", "logits", "levels", "weight", "grad_levels", "grad_weight")
SUMS = (
    "atoms", "row_t", "column_t", "column_slot_t", "class_table", "pixel_weight",
    "softmax", "partial", "main_loss", "aux_loss", "main_grad", "aux_grad",
    "q", "r", "row_taps", "column_taps", "mean", "var", "gamma", "beta",
    "total", "scale", "row_weight", "column_weight",
)  # fmt: skip
INT32 = (
    "row_edge", "column_edge", "column_interval", "bin_table", "row_cell", "tile_edge", "column_cell", "column_slot",
    "softmax_label", "correct", "level_table", "line_table", "line_span", "tap_table",
    "special", "row_index", "column_index", "column_span",
)  # fmt: skip
# Bytes of its registers that a thread may spill: which kernels spill a few differs between versions of Triton.
MOST_STACK = 32
# Warps that these are launched with; the others' number is that of their tiles, or Triton's own, 4.
ONE_WARP = ("cross_entropy_fwd_kernel", "cross_entropy_bwd_kernel", "upsample_argmax_kernel")
INT8 = ("row_reads", "column_reads")
INT64 = ("target", "labels", "bad_label")


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
            assert (axis.edge[first], axis.edge[last], axis.bin_pixels[level][i]) == (begin, end, end - begin)


def test_pspnet_at_473_pixels_has_36_atoms() -> None:
    cut = partition(60, 60, (1, 2, 3, 6), CPU)
    assert (cut.atoms, cut.packed_bins) == (36, 50)
    assert cut.column_interval.tolist() == [w // 10 for w in range(60)]
    assert cut.bin[:, 0].tolist() == [0, 6, 0, 6, 60, 60]
    assert cut.bin[:, -1].tolist() == [5, 6, 5, 6, 10, 10]


def test_slots_are_the_pixels_of_every_cell_side_by_side() -> None:
    cells = cut_axis(3, 8, False, torch.float32, CPU)
    assert cells.cell.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert cells.edge.tolist() == [0, 4, 7, 8]
    assert cells.slot.tolist() == [0, 3, 6, 9, 1, 4, 7, 2]
    torch.testing.assert_close(cells.slot_t[cells.slot], cells.t)
    assert cells.slot_t.count_nonzero() == cells.t.count_nonzero()


@given(nodes=st.integers(1, 40), n=st.integers(1, 100), align_corners=st.booleans())
def test_bilinear_taps(nodes: int, n: int, align_corners: bool) -> None:
    cell, t = bilinear_taps(nodes, n, align_corners)
    ramp = torch.arange(nodes, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(
        ramp.view(1, 1, 1, -1), (1, n), mode="bilinear", align_corners=align_corners
    )
    second = (cell + 1).clamp(max=nodes - 1)
    torch.testing.assert_close((1 - t) * ramp[cell] + t * ramp[second], expected.flatten())
    assert ((t >= 0) & (t < 1)).all()


@given(nodes=st.integers(1, 40), n=st.integers(1, 100))
def test_tiles_lie_in_one_cell(nodes: int, n: int) -> None:
    cells = cut_axis(nodes, n, True, torch.float32, CPU)
    edges = cells.tile_edge.tolist()
    assert (edges[0], edges[-1]) == (0, n)
    for first, end in pairwise(edges):
        assert 0 < end - first <= cells.tile_rows
        assert cells.cell[first] == cells.cell[end - 1]


@pytest.mark.parametrize(("nodes", "n", "tile"), [(60, 473, 8), (60, 480, 8), (5, 61, 8), (9, 41, 2), (4, 4, 1)])
def test_tiles_fit_the_cells(nodes: int, n: int, tile: int) -> None:
    assert cut_axis(nodes, n, True, torch.float32, CPU).tile_rows == tile


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)], ids=lambda t: str(t[1]))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("module", "name", "everything"), BUILDS)
def test_compiles_ahead_of_time(
    module: str, name: str, everything: bool, dtype: str, target: tuple[str, Any, int]
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"pspnet_fast.triton.{module}"), name)
    constants, num_warps = launch_options(name, dtype, target[0])
    constants = (EVERYTHING if everything else PLAIN) | constants
    given = {argument: constants[argument] for argument in kernel.arg_names if argument in constants}
    signature = {
        argument: "constexpr" if argument in given else argument_type(argument, dtype) for argument in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=given)
    compiled = triton.compile(source, target=GPUTarget(*target), options={"num_warps": num_warps})
    if target[0] == "hip":
        assert len(compiled.asm["hsaco"]) > 0
        assert "atomic" not in compiled.asm["amdgcn"]  # the order of every sum is fixed
        return
    assert f".target sm_{target[1]}" in compiled.asm["ptx"]
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
    if dtype != "fp64":
        assert stack_bytes(compiled.asm["cubin"]) <= MOST_STACK


def launch_options(name: str, dtype: str, target: str) -> tuple[dict[str, Any], int]:
    """The tiles that a kernel is launched with at PSPNet's sizes in channels_last, and its number of warps."""
    for module in (pyramid_concat, upsample_add):
        if hasattr(module, name):
            columns, channels = module.NHWC_TILE if "fwd" in name else module.NHWC_GRAD_TILE
            return {"COLUMNS": columns, "CHANNELS": channels}, 4
    if not hasattr(pyramid_conv, name):
        return {}, 1 if name in ONE_WARP else 4
    tiles = pyramid_conv.tiles_for(DTYPES[dtype], hip=target == "hip")
    short = name == "levels_bwd_kernel"
    side = min(tiles.side, 32) if short else tiles.side
    options = {
        "POSITIONS": side, "OUTPUTS": side, "CHANNELS": side, "DEPTH": tiles.depth, "PRECISION": tiles.precision,
        "TAPS": side, "LINES": min(side, 32), "ROWS": tiles.depth, "COLUMNS": tiles.depth,
    }  # fmt: skip
    if name == "pyramid_conv_fwd_kernel":
        options |= {"ROWS": pyramid_conv.ROWS, "COLUMNS": pyramid_conv.COLUMNS, "TAPS": pyramid_conv.TAPS}
    return options, 4 if short else tiles.num_warps


def argument_type(argument: str, dtype: str) -> str:
    """A kernel argument's type, in Triton's spelling, by its name."""
    if argument in MAPS:
        return f"*{dtype}"
    if argument in SUMS:
        return "*fp64" if dtype == "fp64" else "*fp32"
    integers = {name: kind for kind, names in (("*i8", INT8), ("*i32", INT32), ("*i64", INT64)) for name in names}
    return integers.get(argument, "i32")


def stack_bytes(cubin: bytes) -> int:
    """The stack that a kernel takes, by the cuobjdump that comes with triton."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        report = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    return int(re.search(r"STACK:(\d+)", report.stdout)[1])  # type: ignore[index]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter wraps kernels in another class")
def test_every_kernel_is_listed() -> None:
    from triton.runtime.jit import JITFunction

    for module, names in KERNELS.items():
        found = vars(importlib.import_module(f"pspnet_fast.triton.{module}"))
        kernels = {n for n, value in found.items() if isinstance(value, JITFunction) and n.endswith("_kernel")}
        assert kernels == set(names)


# ---- Tables on their way to a device, the host's part ---------------------------------------------------------------

TABLES: dict[str, tuple[Callable[..., tables.HostTables[Any]], Callable[..., Any], tuple[Any, ...]]] = {
    "partition": (_partition, partition, (11, 7, (1, 2))),
    "cells": (_cut_axis, cut_axis, (3, 8, False, torch.float32)),
    "pyramid_taps": (_pyramid_taps, pyramid_taps, (11, 7, ((1, 1), (2, 3)), (3, 3), True, torch.float32)),
}


def tensors_of(made: Any) -> dict[str, Tensor]:
    return {name: value for name, value in vars(made).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", TABLES)
def test_made_once_and_copied_for_each_call(kind: str) -> None:
    """What becomes of one call's copy, on its stream or in its graph, is nothing to another call."""
    make, bring, arguments = TABLES[kind]
    host = make(*arguments)
    assert make(*arguments) is host
    expected = tensors_of(host.tables)
    assert any(tensor.count_nonzero() for tensor in expected.values())
    for name, tensor in tensors_of(bring(*arguments, CPU)).items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.is_contiguous()
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
        tensor.zero_()
    again = tensors_of(bring(*arguments, CPU))
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert len({tensor.data_ptr() // tables.ALIGNMENT for tensor in again.values()}) == len(again)


def test_what_a_graph_copies_from_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay reads the host's memory again, whatever a cache has dropped by then."""
    kept: dict[int, Tensor] = {}
    monkeypatch.setattr(tables, "_read_by_graphs", kept)
    host = tables.host_tables(_partition(5, 4, (1, 2)).tables)
    host.on(CPU)
    assert kept == {}
    monkeypatch.setattr(tables, "is_captured", lambda device: True)
    host.on(CPU)
    host.on(CPU)
    assert list(kept.values()) == [host.memory]


def test_pages_are_locked_outside_of_a_capture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = []
    empty = torch.empty

    def recorded(*sizes: int, pin_memory: bool, **options: Any) -> Tensor:
        locked.append(pin_memory)
        return empty(*sizes, **options)

    made = _partition(5, 4, (1, 2)).tables
    monkeypatch.setattr(torch, "empty", recorded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for captured in (False, True):
        monkeypatch.setattr(tables, "is_captured", lambda device, captured=captured: captured)
        tables.host_tables(made)
    assert locked == [True, False]
