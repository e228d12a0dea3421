"""pyramid_pool_through adds into a gradient that nobody else holds, and into no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pool_gradients import PSPNET, check_sum, deliver, spread
from running import Backend, random
from torch import Tensor

from pspnet_fast.ops.pyramid_pool import holders_of_owned, pyramid_pool_through

OPERATOR = "pyramid_pool"


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
    leaf = random(2, 3, 7, 9, device=backend.device).requires_grad_()
    upstream, grad = random(2, 3, 7, 9, device=backend.device), random(2, 3, 50, device=backend.device)
    x, pooled = pyramid_pool_through(leaf)
    kept: list[Tensor] = []
    keeper(x, kept)
    deliver(x, pooled, upstream, grad).backward()
    (seen,) = [tensor.grad if tensor.grad is not None else tensor for tensor in kept]
    torch.testing.assert_close(seen, of_returned(backend, upstream, leaf, grad)[: len(seen)])
    check_sum(leaf.grad, upstream, leaf, grad, PSPNET)


def test_a_gradient_that_is_returned_does_not_change(backend: Backend) -> None:
    leaf = random(2, 3, 7, 9, device=backend.device).requires_grad_()
    upstream, grad = random(2, 3, 7, 9, device=backend.device), random(2, 3, 50, device=backend.device)
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


def test_holders_are_counted_alike_where_compiled_code_calls() -> None:
    """Dynamo compiles frames that compiled code calls, and their references are others."""
    holders_of_owned.cache_clear()
    plain = holders_of_owned()
    found = []

    def called(x: Tensor) -> Tensor:
        holders_of_owned.cache_clear()
        torch._dynamo.graph_break()
        found.append(holders_of_owned())
        return x

    torch.compile(called, backend="eager")(torch.ones(1))
    assert found == [plain]
