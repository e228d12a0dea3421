from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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

from pspnet_fast import reference, upsample_add
from pspnet_fast.reference import Bin

OPERATOR = "upsample_add"
BINS = ((4, 6), (2, 3), 1)
SIZE = (8, 12)


def draw(
    size: tuple[int, int] = SIZE, bins: Sequence[Bin] = BINS, layout: str = "nchw", based: bool = True,
    batch: int = 2, channels: int = 3, **kwargs: Any,
) -> list[Tensor]:  # fmt: skip
    levels = random(batch, channels, sum(h * w for h, w in reference.level_sizes(bins)), **kwargs)
    return [levels, random(batch, channels, *size, layout=layout, **kwargs)] if based else [levels]


def both(size: tuple[int, int] = SIZE, bins: Sequence[Bin] = BINS, **options: Any) -> tuple[Callable[..., Tensor], ...]:
    def bound(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda levels, base=None: function(levels, base, size=size, bins=bins, **options)

    return bound(upsample_add), bound(reference.upsample_add)


ADD = both()[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("based", [True, False], ids=["base", "alone"])
def test_upsample_add(backend: Backend, based: bool, align_corners: bool, layout: str, dtype: torch.dtype) -> None:
    backend.require(dtype, {"based": based} if not align_corners else None)
    inputs = draw(layout=layout, based=based, dtype=dtype, device=backend.device)
    last = layout == "channels_last"
    fused, definition = both(align_corners=align_corners, channels_last=last)
    check_exactness(fused, definition, inputs, upstream_layout=layout)
    if backend.name == "reference":
        return  # stock operators choose their own layout
    result = fused(*inputs)
    assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    bins=st.lists(
        st.one_of(st.integers(1, 7), st.tuples(st.integers(1, 24), st.integers(1, 9))), min_size=1, max_size=4
    ),
    channels=st.sampled_from([1, 5, 70]),
    layout=st.sampled_from(["nchw", "channels_last"]),
    align_corners=st.booleans(),
)
def test_any_shape_and_options(
    backend: Backend, size: tuple[int, int], bins: list[Bin], channels: int, layout: str, align_corners: bool
) -> None:
    inputs = draw(size, bins, layout, channels=channels, device=backend.device)
    check_exactness(*both(size, bins, align_corners=align_corners), inputs, layout)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_line_longer_than_a_task_holds(backend: Backend, layout: str) -> None:
    size, bins, channels = ((9, 700), ((5, 300), (3, 20)), 40)
    if INTERPRETED:
        size, bins, channels = ((2, 130), ((2, 70), (1, 3)), 4)
    inputs = draw(size, bins, layout, channels=channels, batch=1, device=backend.device)
    check_exactness(*both(size, bins), inputs, layout)


@pytest.mark.parametrize(
    ("size", "bins"), [((5, 4), ((2, 3),) * 33), ((1 << 18, 1), ((4096, 1),))], ids=["many", "large"]
)
def test_levels_beyond_the_tables_of_a_kernel(backend: Backend, size: tuple[int, int], bins: Sequence[Bin]) -> None:
    if INTERPRETED and size[0] > 100:
        pytest.skip("takes minutes")
    check_exactness(*both(size, bins), draw(size, bins, channels=1, batch=1, device=backend.device))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradient_of_the_levels_has_the_layout_of_the_maps(backend: Backend, layout: str) -> None:
    levels, base = draw(layout=layout, device=backend.device)
    (grad,) = torch.autograd.grad(ADD(levels.requires_grad_(), base), levels, base)
    if backend.name != "reference":
        assert grad.mT.is_contiguous() == (layout == "channels_last")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_levels_in_other_strides(backend: Backend, layout: str) -> None:
    levels, base = draw(layout=layout, device=backend.device)
    strided = levels.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(ADD(strided, base), ADD(levels, base), rtol=0, atol=0)


def test_one_node_for_each_input(backend: Backend) -> None:
    """The gradient of the base is the upstream gradient itself."""
    levels, base = (t.requires_grad_() for t in draw(device=backend.device))
    upstream = random(2, 3, *SIZE, device=backend.device)
    (grad,) = torch.autograd.grad(ADD(levels, base), base, upstream)
    torch.testing.assert_close(grad, upstream, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(ADD(levels.detach(), base), base, upstream)
    torch.testing.assert_close(grad, upstream, rtol=0, atol=0)


@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_gradcheck(backend: Backend, align_corners: bool) -> None:
    function, _ = both((4, 3), ((2, 3), 1), align_corners=align_corners)
    check_gradients_twice(function, draw((4, 3), ((2, 3), 1), batch=1, dtype=torch.float64, device=backend.device))


def test_empty_batch(backend: Backend) -> None:
    inputs = draw(batch=0, device=backend.device)
    (y,), gradients = differentiate(ADD, inputs)
    assert y.shape == (0, 3, *SIZE)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_same_bits_every_run(backend: Backend, layout: str) -> None:
    threads = (1, 2, 3) if backend.name == "cpu" else (1, 1)
    check_same_bits(ADD, draw(layout=layout, device=backend.device), threads)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_writes_every_element(backend: Backend, layout: str) -> None:
    check_writes_everything(ADD, draw(layout=layout, device=backend.device))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_meta(backend: Backend, layout: str) -> None:
    check_meta(ADD, draw(layout=layout, device=backend.device))


def test_compile(backend: Backend) -> None:
    def function(levels: Tensor, base: Tensor) -> Tensor:
        return upsample_add(levels * 2, base + 1, bins=BINS)

    check_compiles(function, *(draw(s, device=backend.device) for s in (SIZE, (9, 7))), backend=backend.compiler)


def test_compile_with_levels_of_dynamic_size(backend: Backend) -> None:
    torch.compiler.reset()
    sizes: list[int] = []

    def function(maps: Tensor) -> Tensor:
        h, w = maps.shape[2:]
        return upsample_add(maps.flatten(2), size=(2 * h, 2 * w), bins=((h, w),))

    def counting(graph: Any, inputs: Any) -> Any:
        sizes.append(len(inputs))
        return graph

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counting)
    for size in ((3, 4), (5, 7), (6, 9)):
        maps = random(1, 2, *size, device=backend.device)
        torch.testing.assert_close(compiled(maps), function(maps))
    assert len(sizes) == 1, "a graph for every size"


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(ADD, draw(device=backend.device), backend.operator(OPERATOR))


def test_autocast_leaves_dtypes_alone(backend: Backend) -> None:
    inputs = draw(device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        y = ADD(*inputs)
    torch.testing.assert_close(y, ADD(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"levels": torch.zeros(2, 3, 30)}, ValueError, r"levels must be \[B, C, 31\]"),
        ({"levels": torch.zeros(2, 3, 31, dtype=torch.int64)}, TypeError, "levels must be floating-point"),
        ({"levels": torch.zeros(2, 0, 31)}, ValueError, "levels have no channels"),
        ({"size": (0, 4)}, ValueError, "size must be"),
        ({"size": None}, ValueError, "size must be given where base is None"),
        ({"base": torch.zeros(2, 3, 8, 11)}, ValueError, r"base must be \[2, 3, 8, 12\] .* not \[2, 3, 8, 11\]"),
        ({"base": torch.zeros(2, 3, *SIZE, dtype=torch.float64)}, TypeError, "base is torch.float64 but levels"),
        ({"base": torch.zeros(2, 3, *SIZE, device="meta")}, ValueError, "base is on meta but levels on cpu"),
        ({"bins": ()}, ValueError, "bins must be"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {"levels": torch.zeros(2, 3, 31), "size": SIZE, "base": None, "bins": BINS}
    with pytest.raises(error, match=words):
        functools.partial(upsample_add, **{**good, **changed})()
