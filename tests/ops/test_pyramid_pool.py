from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
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

from pspnet_fast import pyramid_pool, reference

OPERATOR = "pyramid_pool"
PSPNET = (1, 2, 3, 6)

# Sides that the bins divide and sides they do not, fewer cells than bins, a single cell, bins without order.
SHAPES = [
    ((2, 3, 12, 12), PSPNET),
    ((2, 3, 13, 9), PSPNET),
    ((1, 5, 7, 20), PSPNET),
    ((2, 3, 2, 3), PSPNET),
    ((1, 4, 1, 1), PSPNET),
    ((1, 3, 11, 10), (1, 2, 4, 8)),
    ((2, 2, 9, 11), (5,)),
    ((1, 37, 6, 5), (3, 1, 3)),
    ((1, 2, 21, 35), (1,)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("shape", "bins"), SHAPES, ids=str)
def test_pyramid_pool(
    backend: Backend, shape: Sequence[int], bins: Sequence[int], layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype)
    x = random(*shape, dtype=dtype, device=backend.device, layout=layout)
    check_exactness(lambda x: pyramid_pool(x, bins), lambda x: reference.pyramid_pool(x, bins), [x])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str) -> None:
    x = random(2, 3, 7, 9, device=backend.device, layout=layout)
    (pooled,), (dx,) = differentiate(pyramid_pool, [x])
    assert pooled.is_contiguous()
    assert dx.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    check_exactness(pyramid_pool, reference.pyramid_pool, [x])


def test_packing(backend: Backend) -> None:
    x = torch.arange(16.0, device=backend.device).view(1, 1, 4, 4)
    expected = torch.tensor([[[7.5, 2.5, 4.5, 10.5, 12.5]]], device=backend.device)
    torch.testing.assert_close(pyramid_pool(x, (1, 2)), expected)
    torch.testing.assert_close(pyramid_pool(x, [2, 1]), expected[..., [1, 2, 3, 4, 0]])


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 19), st.integers(1, 19)),
    bins=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    layout=st.sampled_from(list(LAYOUTS)),
)
@example(shape=(1, 1, 17, 1), bins=[9, 9], layout="channels_last")
def test_any_shape_and_bins(backend: Backend, shape: tuple[int, int, int, int], bins: list[int], layout: str) -> None:
    x = random(*shape, device=backend.device, layout=layout)
    check_exactness(lambda x: pyramid_pool(x, bins), lambda x: reference.pyramid_pool(x, bins), [x])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradcheck(backend: Backend, layout: str) -> None:
    x = random(1, 2, 5, 4, dtype=torch.float64, device=backend.device, layout=layout)
    check_gradients_twice(lambda x: pyramid_pool(x, (1, 3)), [x])


def test_empty_batch(backend: Backend) -> None:
    (pooled,), (dx,) = differentiate(pyramid_pool, [torch.empty(0, 3, 5, 7, device=backend.device)])
    assert (pooled.shape, dx.shape) == ((0, 3, 50), (0, 3, 5, 7))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_same_bits_every_run(backend: Backend, layout: str) -> None:
    channels = 2 if INTERPRETED else 40  # enough for several threads
    x = random(1, channels, 13, 11, device=backend.device, layout=layout)
    check_same_bits(pyramid_pool, [x], threads=(1, 1, 2))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("side", [1, 7, 12])
def test_writes_every_element(backend: Backend, side: int, layout: str) -> None:
    check_writes_everything(pyramid_pool, [random(2, 3, side, side, device=backend.device, layout=layout)])


def test_input_is_left_alone(backend: Backend) -> None:
    x = random(1, 2, 6, 6, device=backend.device)
    before = x.clone()
    differentiate(pyramid_pool, [x])
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    backend.require(dtype)
    # A running sum in half precision stops growing long before 10,000 terms.
    x = torch.full((1, 1, 100, 100), 0.7, dtype=dtype, device=backend.device)
    torch.testing.assert_close(pyramid_pool(x, (1,)), x[:, :, 0, :1], rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_meta(backend: Backend, layout: str) -> None:
    check_meta(pyramid_pool, [random(2, 3, 7, 9, device=backend.device, layout=layout)])


def test_compile(backend: Backend) -> None:
    def tripled(x: Tensor) -> Tensor:
        return pyramid_pool(x * 3, (1, 2)) + 1

    sizes = [(2, 3, 7, 9), (1, 3, 10, 8)]
    check_compiles(tripled, *([random(*size, device=backend.device)] for size in sizes), backend=backend.compiler)


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(pyramid_pool, [random(1, 3, 7, 9, device=backend.device)], backend.operator(OPERATOR))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtype(backend: Backend, dtype: torch.dtype) -> None:
    backend.require(dtype)
    x = random(1, 3, 7, 9, dtype=dtype, device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert pyramid_pool(x).dtype == dtype


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_more_elements_than_int32_counts(backend: Backend, layout: str) -> None:
    if backend.device.type != "cuda" or torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs a GPU with 20 GiB free")
    x = torch.zeros(3, 2048, 600, 600, dtype=torch.bfloat16, device="cuda").contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    x[-1, -1] = 1
    x.requires_grad_()
    pooled = pyramid_pool(x)
    assert pooled[-1, -1].eq(1).all()
    assert pooled.count_nonzero() == 50
    (dx,) = torch.autograd.grad(pooled[-1, -1, 0], x)
    assert dx[-1, -1].count_nonzero() == 600 * 600
    assert dx[0].count_nonzero() == 0


@pytest.mark.parametrize(
    ("x", "bins", "error", "words"),
    [
        (torch.zeros(3, 7, 9), PSPNET, ValueError, r"x must be \[B, C, H, W\], not of shape \(3, 7, 9\)"),
        (torch.zeros(1, 3, 0, 9), PSPNET, ValueError, r"x has no pixels: its shape is \(1, 3, 0, 9\)"),
        (torch.zeros(1, 3, 7, 9).int(), PSPNET, TypeError, r"not torch.int32; convert it with x.float\(\)"),
        (
            torch.zeros(1, 3, 7, 9),
            (),
            ValueError,
            r"bins must be a sequence of integers of 1 to 4096 such as \(1, 2, 3, 6\), not \(\)",
        ),
        (torch.zeros(1, 3, 7, 9), (1, 0), ValueError, r"bins must be a sequence of integers .* not \(1, 0\)"),
        (torch.zeros(1, 3, 7, 9), (1, 2.0), ValueError, r"bins must be a sequence of integers .* not \(1, 2.0\)"),
        (torch.zeros(1, 3, 7, 9), (True,), ValueError, r"bins must be a sequence of integers .* not \(True,\)"),
    ],
)
def test_bad_arguments(backend: Backend, x: Tensor, bins: Sequence[int], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pyramid_pool(x.to(backend.device), bins)
