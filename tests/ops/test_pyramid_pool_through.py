"""pyramid_pool_through: the pyramid's gradient is added into the one that came for x, in place, where nobody else holds
that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from drawing import PSPNET, draw_through
from exactness import assert_as_exact_as_stock
from running import DENSE, DTYPES, LAYOUTS, Backend, Calls, check_exactness, random
from torch import Tensor

from pspnet_fast import pyramid_conv, reference
from pspnet_fast.ops.operator import overload
from pspnet_fast.ops.pyramid_pool import _compose_backward_add, pyramid_pool_through

OPERATOR = "pyramid_pool"
SHAPES = [
    ((2, 8, 12, 16), PSPNET),
    ((2, 3, 13, 9), PSPNET),
    ((1, 5, 2, 3), PSPNET),
    ((1, 16, 1, 1), (1, 4)),
    ((1, 3, 11, 33), (6, 1)),
    ((1, 2, 5, 6), (9, 9, 9, 9)),
    ((2, 3, 7, 20), PSPNET),
    ((1, 130, 2, 5), (3, 1)),
]


def spread(x: Tensor, grad: Tensor, bins: Sequence[int]) -> Tensor:
    """The gradient that pooling ``x`` gives it, by stock operators."""
    leaf = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(reference.pyramid_pool(leaf, bins), leaf, grad)
    return dx


def check_sum(actual: Tensor, upstream: Tensor, x: Tensor, grad: Tensor, bins: Sequence[int]) -> None:
    """``actual`` is ``upstream`` and the gradient of pooling, to the rule for exactness."""
    stock = upstream + spread(x, grad, bins)
    exact = upstream.double() + spread(x.double(), grad.double(), bins)
    assert_as_exact_as_stock(actual, stock, exact, x.dtype)


class Deliver(torch.autograd.Function):
    """Hands a gradient over, and keeps nothing of it: what an operator that makes a new gradient does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grads: list[Tensor]) -> Tensor:
        ctx.grads = grads
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.grads.pop(), None


def deliver(x: Tensor, pooled: Tensor, upstream: Tensor, grad: Tensor) -> Tensor:
    """A number whose gradients by x and by pooled are copies of these, in the same memory layout."""
    own = torch.empty_strided(upstream.shape, upstream.stride(), dtype=upstream.dtype, device=upstream.device)
    return Deliver.apply(x, [own.copy_(upstream)]) + Deliver.apply(pooled, [grad.clone()])


def draw(backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    """x, and gradients for the two results."""
    x, upstream = (random(2, 3, 7, 9, device=backend.device) for _ in range(2))
    return x.requires_grad_(), upstream, random(2, 3, 50, device=backend.device)


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
    leaf, upstream, grad = draw(backend)
    (dx,) = torch.autograd.grad(pyramid_pool_through(leaf)[0], leaf, upstream.clone())
    torch.testing.assert_close(dx, upstream, rtol=0, atol=0)
    (dx,) = torch.autograd.grad(pyramid_pool_through(leaf)[1], leaf, grad)
    check_sum(dx, torch.zeros_like(leaf), leaf, grad, PSPNET)


def test_behind_another_operator(backend: Backend) -> None:
    fused, definition, inputs = draw_through(device=backend.device)
    check_exactness(lambda x: fused(x.exp()), lambda x: definition(x.exp()), inputs)


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


def test_definition_returns_x_itself(backend: Backend) -> None:
    """As every back end does where no gradient is wanted: there is nothing to add into."""
    x = random(1, 2, 5, 4, device=backend.device)
    assert pyramid_pool_through(x)[0] is x
    assert (pyramid_pool_through(x.requires_grad_())[0] is x) == (backend.name == "reference")


# ---- Who else holds the gradient ------------------------------------------------------------------------------------


def keep_by_hook(x: Tensor, keep: list[Tensor]) -> None:
    x.register_hook(keep.append)


def keep_view_by_hook(x: Tensor, keep: list[Tensor]) -> None:
    x.register_hook(lambda grad: keep.append(grad.detach()[:1]))


def keep_by_hook_of_the_node(x: Tensor, keep: list[Tensor]) -> None:
    torch.autograd.graph.get_gradient_edge(x).node.register_prehook(lambda grads: keep.append(grads[0]))


def keep_by_hook_of_several(x: Tensor, keep: list[Tensor]) -> None:
    torch.autograd.graph.register_multi_grad_hook([x], lambda grads: keep.append(grads[0]))


def retain(x: Tensor, keep: list[Tensor]) -> None:
    x.retain_grad()
    keep.append(x)


KEEPERS = [keep_by_hook, keep_view_by_hook, keep_by_hook_of_the_node, keep_by_hook_of_several, retain]


def of_returned(backend: Backend, upstream: Tensor, leaf: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the x that is returned; by the definition that is x itself, which is pooled too."""
    return upstream + spread(leaf, grad, PSPNET) if backend.name == "reference" else upstream


@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda keeper: keeper.__name__)
def test_a_gradient_that_is_kept_does_not_change(
    backend: Backend, keeper: Callable[[Tensor, list[Tensor]], None]
) -> None:
    leaf, upstream, grad = draw(backend)
    x, pooled = pyramid_pool_through(leaf)
    kept: list[Tensor] = []
    keeper(x, kept)
    deliver(x, pooled, upstream, grad).backward()
    (seen,) = [tensor.grad if tensor.grad is not None else tensor for tensor in kept]
    torch.testing.assert_close(seen, of_returned(backend, upstream, leaf, grad)[: len(seen)])
    check_sum(leaf.grad, upstream, leaf, grad, PSPNET)


def test_a_gradient_that_is_returned_does_not_change(backend: Backend) -> None:
    leaf, upstream, grad = draw(backend)
    x, pooled = pyramid_pool_through(leaf)
    dx, of_x = torch.autograd.grad(deliver(x, pooled, upstream, grad), [leaf, x])
    torch.testing.assert_close(of_x, of_returned(backend, upstream, leaf, grad))
    check_sum(dx, upstream, leaf, grad, PSPNET)


def test_a_gradient_of_two_tensors_does_not_change(backend: Backend) -> None:
    """Addition hands the same gradient to both."""
    leaf = random(2, 3, 7, 9, device=backend.device).requires_grad_()
    other = torch.zeros_like(leaf).requires_grad_()
    upstream, grad = random(2, 3, 7, 9, device=backend.device), random(2, 3, 50, device=backend.device)
    x, pooled = pyramid_pool_through(leaf)
    deliver(x + other, pooled, upstream, grad).backward()
    torch.testing.assert_close(other.grad, upstream, rtol=0, atol=0)
    check_sum(leaf.grad, upstream, leaf, grad, PSPNET)


@pytest.mark.parametrize("layout", DENSE)
def test_backward_makes_no_other_map_behind_a_compilation_that_failed(backend: Backend, layout: str) -> None:
    """Dynamo runs all frames from then on."""

    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(broken, backend="eager", fullgraph=True)(torch.ones(1))
    test_backward_makes_no_other_map(backend, layout)
