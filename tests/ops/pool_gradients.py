"""What the tests of pyramid_pool_through share: its gradient by stock operators, and gradients handed to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from exactness import assert_as_exact_as_stock
from torch import Tensor

from pspnet_fast import reference

PSPNET = (1, 2, 3, 6)


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
