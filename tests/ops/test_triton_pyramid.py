"""The Triton functions behind the pyramid's operators, called directly: tiles and blocks that the operators' own tests,
which are small, do not reach, and what only other operators call.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from exactness import assert_as_exact_as_stock
from running import INTERPRETED, home, random
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

from pspnet_fast import reference
from pspnet_fast.triton.pyramid_concat import pyramid_concat_backward, pyramid_concat_forward
from pspnet_fast.triton.pyramid_pool import pyramid_pool_backward, pyramid_pool_backward_add

DEVICE = home("triton")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="without a GPU, kernels run with TRITON_INTERPRET=1 only"
)
# The interpreter is not reliable in bfloat16.
DTYPES = [torch.float32, torch.float64, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("shape", "bins"), [((2, 3, 7, 20), (1, 2, 3, 6)), ((1, 130, 2, 5), (3, 1))], ids=str)
def test_pool_gradient_is_added(shape: Sequence[int], bins: Sequence[int], layout: str, dtype: torch.dtype) -> None:
    grad_x = random(*shape, dtype=dtype, device=DEVICE, layout=layout)
    grad = random(*shape[:2], sum(k * k for k in bins), dtype=dtype, device=DEVICE)
    x = torch.zeros(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    (spread,) = torch.autograd.grad(reference.pyramid_pool(x, bins), x, grad.double())
    exact, stock = grad_x.double() + spread, grad_x + spread.to(dtype)

    address, strides = grad_x.data_ptr(), grad_x.stride()
    pyramid_pool_backward_add(grad_x, grad, bins)
    assert (grad_x.data_ptr(), grad_x.stride()) == (address, strides)
    assert_as_exact_as_stock(grad_x, stock, exact, dtype)


def test_pool_gradient_added_to_nothing_is_the_gradient() -> None:
    grad_x, grad = torch.zeros(2, 3, 8, 9, device=DEVICE), random(2, 3, 14, device=DEVICE)
    pyramid_pool_backward_add(grad_x, grad, (1, 2, 3))
    expected = pyramid_pool_backward(grad, 8, 9, (1, 2, 3), channels_last=False)
    torch.testing.assert_close(grad_x, expected, rtol=0, atol=0)


def stock_concat(
    x: Tensor, levels: Tensor, grad: Tensor, bins: Sequence[int], align_corners: bool, x_first: bool
) -> tuple[Tensor, Tensor]:
    """The concatenated map in stock operators, and its gradient by the levels."""
    leaf = levels.detach().requires_grad_()
    y = reference.pyramid_concat(x, leaf, bins=bins, align_corners=align_corners, x_first=x_first)
    return y.detach(), torch.autograd.grad(y, leaf, grad.to(y.dtype))[0]


# Several blocks of channels, of columns and of lines; channels that fill no block; more cells than a matrix tile has.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("size", "channels", "level_channels", "bins"),
    [((3, 141), 1, 2, (2, 1)), ((2, 5), 131, 129, (1,)), ((18, 5), 1, 18, (17, 3))],
    ids=["columns", "channels", "cells"],
)
def test_concat_in_blocks(
    size: tuple[int, int], channels: int, level_channels: int, bins: Sequence[int], layout: str
) -> None:
    options = bins, False, False
    x = random(1, channels, *size, device=DEVICE, layout=layout)
    levels = random(1, level_channels, sum(k * k for k in bins), device=DEVICE)
    grad = random(1, channels + len(bins) * level_channels, *size, device=DEVICE, layout=layout)
    stock, exact = stock_concat(x, levels, grad, *options), stock_concat(x.double(), levels.double(), grad, *options)
    y = pyramid_concat_forward(x, levels, *options)
    grad_levels = pyramid_concat_backward(grad, channels, *options)
    assert_as_exact_as_stock(y, stock[0], exact[0], x.dtype)
    assert_as_exact_as_stock(grad_levels, stock[1], exact[1], x.dtype)
