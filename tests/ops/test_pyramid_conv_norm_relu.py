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
    LAYOUTS,
    Backend,
    check_exports,
    check_inference,
    deterministic,
    differentiate,
    draw_norm,
    poisoned,
    random,
)
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops.pyramid_conv import pyramid_conv_norm_relu
from pspnet_fast.reference import NormStatistics

OPERATOR = "pyramid_conv_norm_relu"
BINS = (1, 2, 3, 6)


def draw(
    size: tuple[int, int], bins: Sequence[int] = BINS, kernel: tuple[int, int] = (3, 3), layout: str = "nchw",
    out_channels: int = 4, batch: int = 2, **kwargs: Any,
) -> list[Tensor]:  # fmt: skip
    """x of 5 channels, levels of 3, a weight and a bias."""
    channels = 5 + 3 * len(bins)
    x = random(batch, 5, *size, layout=layout, **kwargs)
    levels = random(batch, 3, sum(k * k for k in bins), **kwargs)
    weight = random(
        out_channels, channels, *kernel, layout="channels_last" if layout == "channels_last" else "nchw", **kwargs
    )
    return [x, levels, weight / (channels * kernel[0] * kernel[1]) ** 0.5, random(out_channels, **kwargs)]


def call(function: Any, tensors: Sequence[Tensor], norms: Sequence[NormStatistics], **options: Any) -> Tensor:
    x, levels, weight, *bias = tensors
    result: Tensor = function(x, levels, weight, norms[0], *bias, **options)
    return result


def check(tensors: Sequence[Tensor], norm: NormStatistics, **options: Any) -> None:
    fused = functools.partial(call, pyramid_conv_norm_relu, **options)
    check_inference(fused, functools.partial(call, reference.pyramid_conv_norm_relu, **options), tensors, [norm])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("x_first", [True, False], ids=["x_first", "x_last"])
def test_pyramid_conv_norm_relu(
    backend: Backend, align_corners: bool, x_first: bool, layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype, {} if align_corners and x_first else {"align_corners": align_corners, "x_first": x_first})
    tensors = draw((7, 10), layout=layout, dtype=dtype, device=backend.device)
    norm = draw_norm(4, dtype, backend.device)
    check(tensors, norm, align_corners=align_corners, x_first=x_first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    """What a network in half precision keeps them in, and what it hands over under autocast."""
    backend.require(dtype)
    check(draw((5, 6), dtype=dtype, device=backend.device), draw_norm(4, torch.float32, backend.device))


# More channels than a block takes, and more columns; vectors of 16 and 8 bytes, and single elements.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("out_channels", "width"), [(40, 72), (44, 68), (33, 67)])
def test_sizes_of_vectors(backend: Backend, out_channels: int, width: int, layout: str, dtype: torch.dtype) -> None:
    backend.require(dtype)
    tensors = draw((11, width), out_channels=out_channels, layout=layout, dtype=dtype, device=backend.device)
    check(tensors, draw_norm(out_channels, dtype, backend.device))


@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    bins=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    layout=st.sampled_from(list(LAYOUTS)),
    align_corners=st.booleans(),
    x_first=st.booleans(),
    biased=st.booleans(),
)
def test_any_shape_and_options(
    backend: Backend,
    size: tuple[int, int],
    bins: list[int],
    kernel: tuple[int, int],
    layout: str,
    align_corners: bool,
    x_first: bool,
    biased: bool,
) -> None:
    tensors = draw(size, bins, kernel, layout, device=backend.device)
    norm = draw_norm(4, device=backend.device)
    check(tensors[: 4 if biased else 3], norm, bins=bins, align_corners=align_corners, x_first=x_first)


def test_more_levels_than_tables_hold(backend: Backend) -> None:
    check(draw((4, 5), [1, 2] * 5, device=backend.device), draw_norm(4, device=backend.device), bins=[1, 2] * 5)


def test_nan_stays_nan(backend: Backend) -> None:
    """As in ReLU, which is not a comparison with zero."""
    tensors = draw((5, 6), kernel=(1, 1), device=backend.device)
    tensors[0][0, 0, 2, 3] = torch.nan
    y = call(pyramid_conv_norm_relu, tensors, [draw_norm(4, device=backend.device)])
    assert y[0, :, 2, 3].isnan().all()
    assert y.isnan().sum() == y.shape[1]


def test_gradients_come_from_the_steps(backend: Backend) -> None:
    tensors, norm = draw((6, 7), device=backend.device), draw_norm(4, device=backend.device)

    def run(function: Any) -> Any:
        return differentiate(lambda *t: call(function, t, [norm]), tensors)

    torch.testing.assert_close(run(pyramid_conv_norm_relu), run(reference.pyramid_conv_norm_relu), rtol=1e-4, atol=1e-4)


def test_empty_batch(backend: Backend) -> None:
    tensors = draw((5, 7), batch=0, device=backend.device)
    assert call(pyramid_conv_norm_relu, tensors, [draw_norm(4, device=backend.device)]).shape == (0, 4, 5, 7)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_writes_every_element_in_the_convolutions_layout(backend: Backend, layout: str) -> None:
    tensors, norm = draw((5, 7), layout=layout, device=backend.device), draw_norm(4, device=backend.device)
    with deterministic():  # as what poisons: of cuDNN it takes the same algorithm
        clean = call(pyramid_conv_norm_relu, tensors, [norm])
    with poisoned():
        again = call(pyramid_conv_norm_relu, tensors, [norm])
    torch.testing.assert_close(again, clean, rtol=0, atol=0)
    assert again.stride() == reference.pyramid_conv(*tensors).stride()


def test_compile(backend: Backend) -> None:
    torch.compiler.reset()
    norm = draw_norm(4, device=backend.device)
    compiled = torch.compile(
        lambda *t: call(pyramid_conv_norm_relu, t, [norm]) + 1, fullgraph=True, backend=backend.compiler
    )
    for size in ((7, 9), (10, 8)):
        tensors = draw(size, device=backend.device)
        expected = call(pyramid_conv_norm_relu, tensors, [norm]) + 1
        torch.testing.assert_close(compiled(*tensors), expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    norm = draw_norm(4, device=backend.device)
    check_exports(
        lambda *t: call(pyramid_conv_norm_relu, t, [norm]),
        draw((7, 9), device=backend.device),
        backend.operator("pyramid_conv_norm_relu"),
    )


def test_autocast_lowers_as_a_convolution_does(backend: Backend) -> None:
    backend.require(torch.bfloat16)
    tensors, norm = draw((7, 9), device=backend.device), draw_norm(4, device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        y = call(pyramid_conv_norm_relu, tensors, [norm])
    assert y.dtype == torch.bfloat16
    expected = call(reference.pyramid_conv_norm_relu, [t.bfloat16().float() for t in tensors], [norm])
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("field", ["mean", "var", "gamma", "beta"])
def test_bad_statistics(backend: Backend, field: str) -> None:
    tensors, norm = draw((5, 7), device=backend.device), draw_norm(4, device=backend.device)
    with pytest.raises(ValueError, match=rf"norm.{field} must be \[4\], not \[5\]"):
        call(pyramid_conv_norm_relu, tensors, [norm._replace(**{field: torch.zeros(5, device=backend.device)})])
    with pytest.raises(ValueError, match=rf"norm.{field} is on meta but weight on"):
        call(pyramid_conv_norm_relu, tensors, [norm._replace(**{field: torch.zeros(4, device="meta")})])
