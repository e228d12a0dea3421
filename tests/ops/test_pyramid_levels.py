from __future__ import annotations

import pytest
import torch
from drawing import draw_levels
from running import Backend, check_exactness

OPERATOR = "pyramid_levels"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    sample = draw_levels(statistics=torch.float32, dtype=dtype, device=backend.device)
    check_exactness(*sample, gradient=False)


def test_weights_out_of_a_larger_one(backend: Backend) -> None:
    fused, definition, (x, *weights) = draw_levels(device=backend.device)
    sliced = [torch.cat([t, t], dim=1)[:, ::2] for t in weights]
    assert not any(t.is_contiguous() for t in sliced)
    check_exactness(fused, definition, [x, *sliced], gradient=False)


def test_levels_are_contiguous(backend: Backend) -> None:
    fused, _, inputs = draw_levels(layout="channels_last", device=backend.device)
    assert fused(*inputs).is_contiguous()
