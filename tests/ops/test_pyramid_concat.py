from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from running import (
    DTYPES,
    INTERPRETED,
    LAYOUTS,
    Backend,
    check_compiles,
    check_exactness,
    check_exports,
    check_gradients_twice,
    check_meta,
    check_same_bits,
    check_writes_everything,
    differentiate,
    random,
)
from torch import Tensor

from pspnet_fast import pyramid_concat, reference
from pspnet_fast.ops.operator import overload

OPERATOR = "pyramid_concat"


def draw(
    batch: int, channels: int, height: int, width: int, level_channels: int, bins: Sequence[int] = (1, 2, 3, 6),
    layout: str = "nchw", **kwargs: Any,
) -> list[Tensor]:  # fmt: skip
    cells = sum(k * k for k in bins)
    x = random(batch, channels, height, width, layout=layout, **kwargs)
    return [x, random(batch, level_channels, cells, **kwargs)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("x_first", [True, False], ids=["x_first", "x_last"])
def test_pyramid_concat(backend: Backend, align_corners: bool, x_first: bool, layout: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"align_corners": align_corners, "x_first": x_first}
    backend.require(dtype, options if not (align_corners and x_first) else None)
    inputs = draw(2, 3, 7, 10, 2, layout=layout, dtype=dtype, device=backend.device)
    check_exactness(
        functools.partial(pyramid_concat, **options),
        functools.partial(reference.pyramid_concat, **options),
        inputs,
        layout,
    )


# What kernels treat apart: packs of channels and planes that do or do not divide by them, more channels than a thread
# goes through, cells of many pixels, rows that do not fit at once, many bins, fewer pixels than bins, a single one.
SIZES = [
    ((2, 16, 6, 8, 8), (1, 2, 3, 6)),
    ((1, 24, 18, 35, 16), (1, 2, 3, 6)),
    ((1, 1, 5, 5, 41), (1, 3)),
    ((1, 0, 9, 4, 3), (2,)),
    ((1, 5, 2, 1100, 1), (1, 4)),
    ((1, 2, 40, 3, 2), (33, 1)),
    ((1, 8, 2, 3, 8), (9, 1, 9)),
    ((2, 3, 1, 1, 5), (1, 6)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize(("size", "bins"), SIZES, ids=str)
def test_sizes(
    backend: Backend, size: tuple[int, ...], bins: Sequence[int], align_corners: bool, layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype)
    options: dict[str, Any] = {"bins": bins, "align_corners": align_corners, "x_first": len(bins) > 1}
    inputs = draw(*size, bins=bins, layout=layout, dtype=dtype, device=backend.device)
    check_exactness(
        functools.partial(pyramid_concat, **options),
        functools.partial(reference.pyramid_concat, **options),
        inputs,
        layout,
    )


@pytest.mark.parametrize("upstream_layout", [*LAYOUTS, "expanded"])
def test_gradient_of_any_layout(backend: Backend, upstream_layout: str) -> None:
    inputs = draw(2, 8, 7, 9, 4, device=backend.device)
    if upstream_layout == "expanded":
        check_exactness(
            lambda *given: pyramid_concat(*given).sum(), lambda *given: reference.pyramid_concat(*given).sum(), inputs
        )
    else:
        check_exactness(pyramid_concat, reference.pyramid_concat, inputs, upstream_layout)


def test_order_of_channels(backend: Backend) -> None:
    x = torch.full((1, 2, 3, 4), 7.0, device=backend.device)
    levels = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 2.0]]], device=backend.device)
    channels = {
        (bins, x_first): pyramid_concat(x, order, bins=bins, x_first=x_first)[0, :, 1, 2].tolist()
        for bins, order in (((1, 2), levels), ((2, 1), levels.roll(-1, dims=2)))
        for x_first in (True, False)
    }
    assert channels == {
        ((1, 2), True): [7, 7, 1, 2],
        ((1, 2), False): [1, 2, 7, 7],
        ((2, 1), True): [7, 7, 2, 1],
        ((2, 1), False): [2, 1, 7, 7],
    }


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    bins=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    layout=st.sampled_from(list(LAYOUTS)),
    align_corners=st.booleans(),
    x_first=st.booleans(),
)
def test_any_shape_and_options(
    backend: Backend, size: tuple[int, int], bins: list[int], layout: str, align_corners: bool, x_first: bool
) -> None:
    options: dict[str, Any] = {"bins": bins, "align_corners": align_corners, "x_first": x_first}
    inputs = draw(2, 3, *size, 2, bins, layout, device=backend.device)
    check_exactness(
        functools.partial(pyramid_concat, **options),
        functools.partial(reference.pyramid_concat, **options),
        inputs,
        layout,
    )


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_answers_in_the_layout_of_x(backend: Backend, layout: str) -> None:
    if backend.name == "reference":
        pytest.skip("stock operators choose their own layout")
    inputs = draw(2, 3, 5, 7, 2, layout=layout, device=backend.device)
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert pyramid_concat(*inputs).is_contiguous(memory_format=format_)


def test_wider_dtype_wins(backend: Backend) -> None:
    x, levels = draw(1, 2, 5, 6, 2, device=backend.device)
    merged = pyramid_concat(x.bfloat16(), levels)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, pyramid_concat(x.bfloat16().float(), levels))


@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_gradcheck(backend: Backend, align_corners: bool) -> None:
    function = functools.partial(pyramid_concat, bins=(1, 3), align_corners=align_corners)
    check_gradients_twice(function, draw(1, 2, 5, 4, 2, (1, 3), dtype=torch.float64, device=backend.device))


def test_empty_batch(backend: Backend) -> None:
    (merged,), gradients = differentiate(pyramid_concat, draw(0, 3, 5, 7, 2, device=backend.device))
    assert merged.shape == (0, 11, 5, 7)
    assert [g.shape for g in gradients] == [(0, 3, 5, 7), (0, 2, 50)]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_same_bits_every_run(backend: Backend, layout: str) -> None:
    channels = (2, 1) if INTERPRETED else (8, 4)
    inputs = draw(2, channels[0], 9, 11, channels[1], layout=layout, device=backend.device)
    check_same_bits(pyramid_concat, inputs, threads=(1, 1, 2))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_writes_every_element(backend: Backend, layout: str) -> None:
    check_writes_everything(pyramid_concat, draw(2, 3, 5, 7, 2, layout=layout, device=backend.device))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_meta(backend: Backend, layout: str) -> None:
    check_meta(pyramid_concat, draw(2, 3, 5, 7, 2, layout=layout, device=backend.device))


def test_compile(backend: Backend) -> None:
    sizes = [(2, 3, 7, 9, 2), (1, 3, 10, 8, 2)]
    inputs = (draw(*size, device=backend.device) for size in sizes)
    check_compiles(lambda x, levels: pyramid_concat(x * 3, levels) + 1, *inputs, backend="aot_eager")


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(pyramid_concat, draw(1, 3, 7, 9, 2, device=backend.device), backend.operator(OPERATOR))


def test_autocast_keeps_the_dtype(backend: Backend) -> None:
    inputs = draw(1, 3, 7, 9, 2, device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        merged = pyramid_concat(*inputs)
    torch.testing.assert_close(merged, pyramid_concat(*inputs))


@pytest.mark.parametrize(
    ("x_shape", "levels_shape", "bins", "words"),
    [
        ((3, 5, 7), (2, 2, 50), (1, 2, 3, 6), r"x must be \[B, C, H, W\], not of shape \(3, 5, 7\)"),
        ((2, 3, 5, 7), (2, 2, 49), (1, 2, 3, 6), r"levels must be \[2, channels, 50\] .* not \(2, 2, 49\)"),
        ((2, 3, 5, 7), (1, 2, 50), (1, 2, 3, 6), r"levels must be \[2, channels, 50\] .* not \(1, 2, 50\)"),
        ((2, 3, 5, 7), (2, 2, 7, 7), (7,), r"levels must be \[2, channels, 49\] .* not \(2, 2, 7, 7\)"),
        ((2, 3, 5, 7), (2, 2, 50), (1, -2), r"bins must be a sequence of integers .* not \(1, -2\)"),
    ],
)
def test_bad_arguments(
    backend: Backend, x_shape: Sequence[int], levels_shape: Sequence[int], bins: Sequence[int], words: str
) -> None:
    x, levels = (torch.zeros(*shape, device=backend.device) for shape in (x_shape, levels_shape))
    with pytest.raises(ValueError, match=words):
        pyramid_concat(x, levels, bins=bins)


def test_tensors_on_two_devices(backend: Backend) -> None:
    levels = torch.zeros(2, 2, 50, device="meta")
    with pytest.raises(ValueError, match=r"levels is on meta but x on .*; move one with \.to"):
        pyramid_concat(torch.zeros(2, 3, 5, 7, device=backend.device), levels)


@pytest.mark.parametrize("bins", [[1] * 33, [1025, 2]], ids=["many", "large"])
def test_pyramids_beyond_the_tables_are_composed(backend: Backend, bins: list[int]) -> None:
    if backend.name != "cuda":
        pytest.skip("a limit of the kernels for the GPU")
    x, levels = random(1, 1, 2, 2), random(1, 1, sum(k * k for k in bins))
    options = {"bins": bins, "x_first": False}
    check_exactness(
        lambda x, p: pyramid_concat(x, p, **options),
        lambda x, p: reference.pyramid_concat(x, p, **options),
        [x.to(backend.device), levels.to(backend.device)],
    )


def test_native_operators_name_what_does_not_fit(backend: Backend) -> None:
    if backend.name not in ("cpu", "cuda"):
        pytest.skip("the native operators' own")
    x = torch.zeros(1, 1, 2, 2, device=backend.device)
    with pytest.raises(TypeError, match=r"levels is Half but x Float; convert one of them"):
        overload(OPERATOR)(x, torch.zeros(1, 1, 1, device=backend.device).half(), [1], True, True)
    with pytest.raises(ValueError, match=r"grad has 4 channels, which are not 1 of x and as many again for each of 2"):
        overload(f"{OPERATOR}_backward")(x.expand(1, 4, 2, 2), 1, [1, 2], True, True)
