from __future__ import annotations

import pytest
import torch
from running import DENSE, LAYOUTS, Backend, differentiate, random

from pspnet_fast import pyramid_pool

OPERATOR = "pyramid_pool"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_results(backend: Backend, layout: str) -> None:
    x = random(2, 3, 7, 9, device=backend.device, layout=layout)
    (pooled,), (dx,) = differentiate(pyramid_pool, [x])
    assert pooled.is_contiguous()
    assert dx.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def test_packing(backend: Backend) -> None:
    x = torch.arange(16.0, device=backend.device).view(1, 1, 4, 4)
    expected = torch.tensor([[[7.5, 2.5, 4.5, 10.5, 12.5]]], device=backend.device)
    torch.testing.assert_close(pyramid_pool(x, (1, 2)), expected)
    torch.testing.assert_close(pyramid_pool(x, [2, 1]), expected[..., [1, 2, 3, 4, 0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    backend.require(dtype)
    # A running sum in half precision stops growing long before 10,000 terms.
    x = torch.full((1, 1, 100, 100), 0.7, dtype=dtype, device=backend.device)
    torch.testing.assert_close(pyramid_pool(x, (1,)), x[:, :, 0, :1], rtol=0, atol=0)


@pytest.mark.parametrize("layout", DENSE)
def test_more_elements_than_int32_counts(backend: Backend, layout: str) -> None:
    if backend.device.type != "cuda" or torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs a GPU with 20 GiB free")
    x = torch.zeros(3, 2048, 600, 600, dtype=torch.bfloat16, device="cuda").contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    x[-1, -1] = 1
    x.requires_grad_()
    pooled = pyramid_pool(x)
    assert pooled[-1, -1].eq(1).all()
    assert pooled.count_nonzero() == 50
    (dx,) = torch.autograd.grad(pooled[-1, -1, 0], x)
    assert dx[-1, -1].count_nonzero() == 600 * 600
    assert dx[0].count_nonzero() == 0
