"""The Triton functions behind the pyramid's operators, called directly: tiles and blocks that the operators' own tests,
which are small, do not reach, and what only other operators call.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from exactness import assert_as_exact_as_stock
from running import INTERPRETED, home, random

pytest.importorskip("triton", reason="the package triton is not installed")

from pspnet_fast import reference
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
