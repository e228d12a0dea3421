"""pyramid_pool_through: the pyramid's gradient is added into the one that came for x, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from pool_gradients import PSPNET, check_sum, deliver
from running import (
    DTYPES,
    INTERPRETED,
    LAYOUTS,
    Backend,
    check_compiles,
    check_exactness,
    check_gradients_twice,
    check_same_bits,
    differentiate,
    random,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pspnet_fast import pyramid_conv, reference
from pspnet_fast.ops.operator import overload
from pspnet_fast.ops.pyramid_pool import _compose_backward_add, pyramid_pool_through

OPERATOR = "pyramid_pool"
DENSE = ("nchw", "channels_last")
SHAPES = [
    ((2, 8, 12, 16), PSPNET),
    ((2, 3, 13, 9), PSPNET),
    ((1, 5, 2, 3), PSPNET),
    ((1, 16, 1, 1), (1, 4)),
    ((1, 3, 11, 33), (6, 1)),
    ((1, 2, 5, 6), (9, 9, 9, 9)),
]


def adding(backend: Backend) -> Any:
    """The operator that adds; besides the definition, which has none, the composition of PyTorch operators."""
    if backend.name == "reference":
        return _compose_backward_add
    return overload(backend.operator("pyramid_pool_backward_add"))


# ---- The operator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize(("shape", "bins"), SHAPES, ids=str)
def test_backward_add(
    backend: Backend, shape: Sequence[int], bins: Sequence[int], layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype)
    upstream = random(*shape, dtype=dtype, device=backend.device, layout=layout)
    grad = random(*shape[:2], sum(k * k for k in bins), dtype=dtype, device=backend.device)
    total, given_grad = upstream.clone(), grad.clone()
    assert adding(backend)(total, grad, list(bins)) is None
    assert total.stride() == upstream.stride()
    check_sum(total, upstream, upstream, grad, bins)
    torch.testing.assert_close(grad, given_grad, rtol=0, atol=0)


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 19), st.integers(1, 19)),
    bins=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    layout=st.sampled_from(DENSE),
)
def test_backward_add_any_shape(
    backend: Backend, shape: tuple[int, int, int, int], bins: list[int], layout: str
) -> None:
    upstream = random(*shape, device=backend.device, layout=layout)
    grad = random(*shape[:2], sum(k * k for k in bins), device=backend.device)
    total = upstream.clone()
    adding(backend)(total, grad, bins)
    check_sum(total, upstream, upstream, grad, bins)


@pytest.mark.parametrize("layout", DENSE)
def test_backward_add_into_a_part_of_a_batch(backend: Backend, layout: str) -> None:
    """What lies before and behind it in memory is left alone; nothing is aligned."""
    whole = random(4, 3, 5, 7, device=backend.device, layout=layout)
    before = whole.clone()
    grad = random(2, 3, 50, device=backend.device)
    adding(backend)(whole[1:3], grad, list(PSPNET))
    check_sum(whole[1:3], before[1:3], before[1:3], grad, PSPNET)
    torch.testing.assert_close(whole[::3], before[::3], rtol=0, atol=0)


def test_backward_add_takes_any_grad(backend: Backend) -> None:
    """Strides of the levels' gradient: expanded, transposed, every second image."""
    for grad in (
        torch.ones((), device=backend.device).expand(2, 3, 50),
        random(2, 50, 3, device=backend.device).mT,
        random(4, 3, 50, device=backend.device)[::2],
    ):
        for layout in DENSE:
            upstream = random(2, 3, 7, 9, device=backend.device, layout=layout)
            total = upstream.clone()
            adding(backend)(total, grad, list(PSPNET))
            check_sum(total, upstream, upstream, grad, PSPNET)


def test_backward_add_to_an_empty_batch(backend: Backend) -> None:
    adding(backend)(
        torch.empty(0, 3, 5, 7, device=backend.device), torch.empty(0, 3, 50, device=backend.device), [*PSPNET]
    )


def test_backward_add_refuses(backend: Backend) -> None:
    if backend.name != "cuda":
        pytest.skip("only the kernels that write in place check what they are given")
    x, grad = (torch.zeros(*shape, device=backend.device) for shape in ((2, 3, 7, 9), (2, 3, 50)))
    refused: list[tuple[Tensor, Tensor, type[Exception], str]] = [
        (x.mT.contiguous().mT, grad, ValueError, r"grad_x must be dense .* pass grad_x.contiguous\(\)"),
        (x[0], grad, ValueError, r"grad_x must be \[B, C, H, W\], not of shape \[3, 7, 9\]"),
        (x, grad[..., 1:], ValueError, r"grad must be \[B, C, 50\] for bins .* not \[2, 3, 49\]"),
        (x, grad[:1], ValueError, r"grad must be \[2, 3, Σk²\] .* not \[1, 3, 50\]"),
        (x, grad.half(), TypeError, r"grad is Half but grad_x Float; convert one"),
    ]
    for grad_x, levels, error, words in refused:
        with pytest.raises(error, match=words):
            adding(backend)(grad_x, levels, list(PSPNET))


# ---- The function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("upstream_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_through(backend: Backend, layout: str, upstream_layout: str, dtype: torch.dtype) -> None:
    backend.require(dtype, {} if layout == upstream_layout else {"layouts": (layout, upstream_layout)})
    leaf = random(2, 3, 7, 9, dtype=dtype, device=backend.device, layout=layout).requires_grad_()
    x, pooled = pyramid_pool_through(leaf)
    torch.testing.assert_close(x, leaf, rtol=0, atol=0)
    torch.testing.assert_close(pooled, reference.pyramid_pool(leaf))

    upstream = random(2, 3, 7, 9, dtype=dtype, device=backend.device, layout=upstream_layout)
    grad = random(2, 3, 50, dtype=dtype, device=backend.device)
    (dx,) = torch.autograd.grad(deliver(x, pooled, upstream, grad), leaf)
    check_sum(dx, upstream, leaf, grad, PSPNET)


class Calls(TorchDispatchMode):
    """The operators that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", DENSE)
def test_backward_makes_no_other_map(backend: Backend, layout: str) -> None:
    """It is one call of the operator that adds: nothing is spread, copied or summed besides."""
    if backend.name == "reference":
        pytest.skip("the definition's gradients are summed by autograd")
    name = adding(backend).name().replace("::", ".")
    leaf = random(2, 3, 7, 9, device=backend.device, layout=layout).requires_grad_()
    results = pyramid_pool_through(leaf)
    total = deliver(*results, *(torch.ones_like(r) for r in results))
    start = torch.ones_like(total)
    with Calls() as calls:
        torch.autograd.grad(total, leaf, start)
    assert [called for called in calls.names if "detach" not in called] == [f"{name}.default"]


def test_backward_of_a_head_makes_no_other_map(backend: Backend) -> None:
    """The gradient that the convolution over the pyramid makes is the one that is added into."""
    if backend.name == "reference":
        pytest.skip("the definition's gradients are summed by autograd")
    leaf = random(2, 3, 7, 9, device=backend.device).requires_grad_()
    weight = random(4, 15, 3, 3, device=backend.device).requires_grad_()
    x, pooled = pyramid_pool_through(leaf)
    total = pyramid_conv(x, pooled, weight).square().sum()
    with Calls() as calls:
        torch.autograd.grad(total, [leaf, weight])
    (at,) = [i for i, called in enumerate(calls.names) if called.startswith("pspnet_fast.pyramid_pool_backward_add")]
    assert [called for called in calls.names[at - 1 :] if "clone" in called or "add.Tensor" in called] == []


def test_one_of_the_two_results(backend: Backend) -> None:
    leaf = random(2, 3, 7, 9, device=backend.device).requires_grad_()
    upstream, grad = random(2, 3, 7, 9, device=backend.device), random(2, 3, 50, device=backend.device)
    (dx,) = torch.autograd.grad(pyramid_pool_through(leaf)[0], leaf, upstream.clone())
    torch.testing.assert_close(dx, upstream, rtol=0, atol=0)
    (dx,) = torch.autograd.grad(pyramid_pool_through(leaf)[1], leaf, grad)
    check_sum(dx, torch.zeros_like(leaf), leaf, grad, PSPNET)


def test_expanded_gradient(backend: Backend) -> None:
    """That of a sum is one number, seen everywhere: nothing may be added into it."""
    leaf = random(2, 3, 7, 9, device=backend.device).requires_grad_()
    x, pooled = pyramid_pool_through(leaf)
    (dx,) = torch.autograd.grad(x.sum() + pooled.sum(), leaf)
    check_sum(dx, torch.ones_like(leaf), leaf, torch.ones_like(pooled), PSPNET)


def tripled(x: Tensor) -> tuple[Tensor, Tensor]:
    """A consumer of both that makes a new gradient for the map."""
    through, pooled = pyramid_pool_through(x)
    return through * 3, pooled


def test_behind_another_operator(backend: Backend) -> None:
    x = random(2, 3, 7, 9, device=backend.device)
    check_exactness(lambda x: tripled(x.exp()), lambda x: (x.exp() * 3, reference.pyramid_pool(x.exp())), [x])


def test_gradcheck(backend: Backend) -> None:
    def bent(x: Tensor) -> tuple[Tensor, Tensor]:
        through, pooled = pyramid_pool_through(x, (1, 3))
        return through.sin() * pooled[..., :1, None], pooled.cos()

    check_gradients_twice(bent, [random(1, 2, 5, 4, dtype=torch.float64, device=backend.device)])


def test_create_graph_leaves_the_gradient_alone(backend: Backend) -> None:
    """A gradient that is part of a graph is not written into."""
    leaf = random(1, 2, 5, 4, device=backend.device).requires_grad_()
    results = pyramid_pool_through(leaf)
    upstream = [random(*r.shape, device=backend.device).requires_grad_() for r in results]
    before = upstream[0].detach().clone()
    (dx,) = torch.autograd.grad(results, leaf, upstream, create_graph=True)
    torch.testing.assert_close(upstream[0].detach(), before, rtol=0, atol=0)
    check_sum(dx.detach(), before, leaf, upstream[1].detach(), PSPNET)
    assert dx.requires_grad


def test_compile(backend: Backend) -> None:
    sizes = [(2, 3, 7, 9), (1, 3, 10, 8)]
    check_compiles(tripled, *([random(*size, device=backend.device)] for size in sizes), backend=backend.compiler)


@pytest.mark.parametrize("layout", DENSE)
def test_same_bits_every_run(backend: Backend, layout: str) -> None:
    channels = 2 if INTERPRETED else 40  # enough for several threads
    check_same_bits(tripled, [random(1, channels, 13, 11, device=backend.device, layout=layout)], threads=(1, 1, 2))


def test_empty_batch(backend: Backend) -> None:
    (x, pooled), (dx,) = differentiate(tripled, [torch.empty(0, 3, 5, 7, device=backend.device)])
    assert (x.shape, pooled.shape, dx.shape) == ((0, 3, 5, 7), (0, 3, 50), (0, 3, 5, 7))


def test_definition_returns_x_itself(backend: Backend) -> None:
    """As every back end does where no gradient is wanted: there is nothing to add into."""
    x = random(1, 2, 5, 4, device=backend.device)
    assert pyramid_pool_through(x)[0] is x
    assert (pyramid_pool_through(x.requires_grad_())[0] is x) == (backend.name == "reference")
