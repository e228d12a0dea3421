"""Inputs at real sizes on the GPU, and oracles in float64 that are computed there image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from exactness import assert_as_exact_as_stock
from torch import Tensor

from pspnet_fast.backend import kernels
from pspnet_fast.ops.operator import OPERATORS

DEVICE = torch.device("cuda")
HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALF)
LAYOUT = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
Results = list[Tensor]
Function = Callable[..., Sequence[Tensor]]


def random(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """Standard normal values, drawn on the GPU."""
    x = torch.randn(shape, device=DEVICE).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def blocky_labels(batch: int, height: int, width: int, classes: int, block: int = 40) -> Tensor:
    """Labels in blocks, about a tenth of them ignored."""
    coarse = torch.randint(classes, (batch, height // block + 1, width // block + 1), device=DEVICE)
    coarse[torch.rand(coarse.shape, device=DEVICE) < 0.1] = 255
    return coarse.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width].contiguous()


def require_kernel(operator: str, backend: str) -> None:
    """Skip where the back end runs the stock operators, about which the test would tell nothing."""
    if backend != "reference" and backend not in kernels(operator) and not OPERATORS[operator].composed:
        pytest.skip(f"{operator} has no {backend} kernel: stock operators run")


def differentiate(function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> Results:
    """Results of ``function(*inputs)``, then its gradients for ``upstream``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = list(function(*leaves))
    gradients = torch.autograd.grad(results, leaves, [u.to(r.dtype) for u, r in zip(upstream, results, strict=True)])
    return [*(r.detach() for r in results), *gradients]


def check_exact_by_image(
    function: Function, definition: Function, maps: Sequence[Tensor], weights: Sequence[Tensor] = ()
) -> None:
    """Hold a function that treats each image alone to the rule, results and gradients, without a batch in float64.

    ``function(*maps, *weights)`` gives results with the batch in front. The gradients of the weights are sums over the
    images. The gradients of maps come in the layout of the first.
    """
    dtype, batch, count = maps[0].dtype, maps[0].shape[0], len(maps)
    with torch.no_grad():
        shapes = [r.shape for r in definition(*(m[:1] for m in maps), *weights)]
    channels_last = maps[0].is_contiguous(memory_format=torch.channels_last)
    upstream = [random(batch, *s[1:], dtype=dtype, channels_last=channels_last and len(s) == 4) for s in shapes]
    actual = differentiate(function, [*maps, *weights], upstream)
    per_image = len(shapes) + count

    sums: dict[str, Results] = {"stock": [], "exact": []}
    for i in range(batch):
        parts = {}
        for kind, precision in (("stock", dtype), ("exact", torch.float64)):
            inputs = [*(m[i : i + 1].to(precision) for m in maps), *(w.to(precision) for w in weights)]
            parts[kind] = differentiate(definition, inputs, [u[i : i + 1] for u in upstream])
            weight_gradients = parts[kind][per_image:]
            before = sums[kind] or [torch.zeros_like(g) for g in weight_gradients]
            sums[kind] = [a + b for a, b in zip(before, weight_gradients, strict=True)]
        for index in range(per_image):
            a = actual[index][i : i + 1]
            assert_as_exact_as_stock(
                a, parts["stock"][index], parts["exact"][index], dtype, f"image {i}, tensor {index}"
            )
    for index, (stock, exact) in enumerate(zip(sums["stock"], sums["exact"], strict=True)):
        assert_as_exact_as_stock(actual[per_image + index], stock, exact, dtype, f"weight gradient {index}")


def losses_by_image(
    loss_sum: Callable[..., Tensor], logits: Sequence[Tensor], target: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Results]:
    """Summed loss over the batch and the gradients of ``logits``, computed in ``dtype`` an image at a time."""
    total = torch.zeros((), dtype=torch.float64, device=DEVICE)
    gradients: list[Results] = [[] for _ in logits]
    for i in range(target.shape[0]):
        leaves = [z[i : i + 1].detach().to(dtype).requires_grad_() for z in logits]
        loss = loss_sum(*leaves, target[i : i + 1])
        for found, gradient in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
            found.append(gradient)
        total += loss.detach().double()
    return total, [torch.cat(found) for found in gradients]
