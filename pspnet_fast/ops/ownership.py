"""Whether a gradient that autograd hands to a backward has no other owner, so that the backward may write into it."""

from __future__ import annotations

import functools
import sys
from typing import Any, cast

import torch
from torch import Tensor


def holders(grad: Tensor) -> tuple[int, int, int]:
    """How many hold ``grad``: references from C++ to the tensor, of tensors to its memory, and from Python to it.

    Other holders than a backward itself are a hook that kept the gradient, ``torch.autograd.grad`` that returns it,
    another function that was handed the same one, or a view.
    """
    memory = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
    return cast(Any, grad)._use_count(), memory, sys.getrefcount(grad)


@functools.cache
def holders_of_owned() -> tuple[int, int, int]:
    """What :func:`holders` counts where ``backward`` alone holds its parameter.

    It depends on the versions of Python and of torch, so it is counted in a graph where no other code can hold one.
    """
    # Code that Dynamo compiles has other references, and a caller may be run by it.
    dynamo = sys.modules.get("torch._dynamo")
    counted: tuple[int, int, int] = _count() if dynamo is None else dynamo.disable(_count)()
    return counted


def _count() -> tuple[int, int, int]:
    found = []

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            found.append(holders(grad))
            return grad

    with torch.enable_grad():
        (Count.apply(torch.zeros(1, device="cpu", requires_grad=True)) * 2).backward()
    return found[0]
