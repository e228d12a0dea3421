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
    differentiate,
    draw_norm,
    poisoned,
    random,
)
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops.pyramid_pool import pyramid_levels
from pspnet_fast.reference import NormStatistics

OPERATOR = "pyramid_levels"
PSPNET = (1, 2, 3, 6)

# Sides that the bins divide and sides they do not, fewer cells than bins, more channels and cells than a tile holds.
SHAPES = [
    ((2, 5, 12, 12), 4, PSPNET),
    ((1, 8, 13, 9), 3, PSPNET),
    ((1, 3, 2, 3), 4, PSPNET),
    ((1, 70, 7, 8), 67, PSPNET),
    ((3, 40, 11, 10), 9, (5, 1)),
]


def draw(
    shape: Sequence[int], width: int, bins: Sequence[int], layout: str = "nchw", **kwargs: Any
) -> tuple[list[Tensor], list[NormStatistics]]:
    """x with the weights, and the statistics of each level."""
    weights = [random(width, shape[1], 1, 1, **kwargs) / shape[1] ** 0.5 for _ in bins]
    return [random(*shape, layout=layout, **kwargs), *weights], [draw_norm(width, **kwargs) for _ in bins]


def call(function: Any, bins: Sequence[int], tensors: Sequence[Tensor], norms: Sequence[NormStatistics]) -> Tensor:
    x, *weights = tensors
    result: Tensor = function(x, weights, norms, bins)
    return result


def check(tensors: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int]) -> None:
    fused, definition = (functools.partial(call, f, bins) for f in (pyramid_levels, reference.pyramid_levels))
    check_inference(fused, definition, tensors, norms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("shape", "width", "bins"), SHAPES, ids=str)
def test_pyramid_levels(
    backend: Backend, shape: Sequence[int], width: int, bins: Sequence[int], layout: str, dtype: torch.dtype
) -> None:
    check(*draw(shape, width, bins, layout, dtype=dtype, device=backend.device), bins)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    tensors, _ = draw((2, 5, 7, 9), 4, PSPNET, dtype=dtype, device=backend.device)
    check(tensors, [draw_norm(4, device=backend.device) for _ in PSPNET], PSPNET)


@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    channels=st.sampled_from([1, 3, 16]),
    bins=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_any_shape(backend: Backend, size: tuple[int, int], channels: int, bins: list[int], layout: str) -> None:
    check(*draw((2, channels, *size), 4, bins, layout, device=backend.device), bins)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_more_levels_than_tables_hold(backend: Backend, layout: str) -> None:
    check(*draw((2, 5, 4, 6), 4, [1, 2] * 5, layout, device=backend.device), [1, 2] * 5)


def test_weights_out_of_a_larger_one(backend: Backend) -> None:
    tensors, norms = draw((2, 5, 7, 6), 4, (1, 2), device=backend.device)
    sliced = [torch.cat([t, t], dim=1)[:, ::2] for t in tensors[1:]]
    assert not any(t.is_contiguous() for t in sliced)
    check([tensors[0], *sliced], norms, (1, 2))


def test_gradients_come_from_the_steps(backend: Backend) -> None:
    tensors, norms = draw((2, 5, 7, 9), 4, PSPNET, device=backend.device)

    def run(function: Any) -> Any:
        return differentiate(lambda *t: call(function, PSPNET, t, norms), tensors)

    torch.testing.assert_close(run(pyramid_levels), run(reference.pyramid_levels), rtol=1e-4, atol=1e-4)


def test_empty_batch(backend: Backend) -> None:
    assert call(pyramid_levels, (1, 2), *draw((0, 5, 4, 4), 3, (1, 2), device=backend.device)).shape == (0, 3, 5)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_writes_every_element(backend: Backend, layout: str) -> None:
    tensors, norms = draw((2, 5, 7, 9), 4, PSPNET, layout, device=backend.device)
    clean = call(pyramid_levels, PSPNET, tensors, norms)
    assert clean.is_contiguous()
    with poisoned():
        torch.testing.assert_close(call(pyramid_levels, PSPNET, tensors, norms), clean, rtol=0, atol=0)


def test_compile(backend: Backend) -> None:
    torch.compiler.reset()
    _, norms = draw((2, 5, 7, 9), 4, PSPNET, device=backend.device)
    compiled = torch.compile(
        lambda *t: call(pyramid_levels, PSPNET, t, norms) + 1, fullgraph=True, backend=backend.compiler
    )
    for size in ((7, 9), (10, 8)):
        tensors, _ = draw((2, 5, *size), 4, PSPNET, device=backend.device)
        expected = call(pyramid_levels, PSPNET, tensors, norms) + 1
        torch.testing.assert_close(compiled(*tensors), expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    tensors, norms = draw((2, 5, 7, 9), 4, PSPNET, device=backend.device)
    check_exports(lambda *t: call(pyramid_levels, PSPNET, t, norms), tensors, "pyramid_levels")


def test_autocast_lowers_as_a_convolution_does(backend: Backend) -> None:
    tensors, norms = draw((2, 5, 7, 9), 4, PSPNET, device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        levels = call(pyramid_levels, PSPNET, tensors, norms)
    assert levels.dtype == torch.bfloat16
    expected = call(reference.pyramid_levels, PSPNET, [t.bfloat16().float() for t in tensors], norms)
    torch.testing.assert_close(levels.float(), expected, rtol=0.02, atol=0.05)


def test_bad_arguments(backend: Backend) -> None:
    (x, *weights), norms = draw((2, 5, 7, 9), 4, (1, 2), device=backend.device)
    with pytest.raises(ValueError, match=r"weights must hold one entry for each of 2 bins, not 1"):
        pyramid_levels(x, weights[:1], norms, (1, 2))
    with pytest.raises(ValueError, match=r"norms must hold one entry for each of 2 bins, not 3"):
        pyramid_levels(x, weights, [*norms, norms[0]], (1, 2))
    with pytest.raises(ValueError, match=r"weights\[1\] must be \[4, 5, 1, 1\], .* not \[4, 4, 1, 1\]"):
        pyramid_levels(x, [weights[0], weights[1][:, :4]], norms, (1, 2))
    with pytest.raises(TypeError, match=r"weights\[1\] is torch.float64 but x torch.float32"):
        pyramid_levels(x, [weights[0], weights[1].double()], norms, (1, 2))
    with pytest.raises(ValueError, match=r"norms\[0\].var must be \[4\], not \[3\]"):
        pyramid_levels(x, weights, [norms[0]._replace(var=norms[0].var[:3]), norms[1]], (1, 2))
