from __future__ import annotations

import pytest
import torch
from drawing import draw_norm_relu
from running import DENSE, Backend, check_exactness

from pspnet_fast import reference

OPERATOR = "pyramid_conv_norm_relu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    """What a network in half precision keeps them in, and what it hands over under autocast."""
    backend.require(dtype)
    sample = draw_norm_relu(size=(5, 6), statistics=torch.float32, dtype=dtype, device=backend.device)
    check_exactness(*sample, gradient=False)


def test_nan_stays_nan(backend: Backend) -> None:
    """As in ReLU, which is not a comparison with zero."""
    fused, _, inputs = draw_norm_relu(size=(5, 6), kernel=(1, 1), device=backend.device)
    inputs[0][0, 0, 2, 3] = torch.nan
    y = fused(*inputs)
    assert y[0, :, 2, 3].isnan().all()
    assert y.isnan().sum() == y.shape[1]


@pytest.mark.parametrize("layout", DENSE)
def test_answers_in_the_convolutions_layout(backend: Backend, layout: str) -> None:
    fused, _, inputs = draw_norm_relu(layout=layout, device=backend.device)
    assert fused(*inputs).stride() == reference.pyramid_conv(*inputs).stride()
