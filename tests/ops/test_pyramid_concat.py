from __future__ import annotations

import pytest
import torch
from drawing import draw_concat
from running import DENSE, Backend, check_exactness

from pspnet_fast import pyramid_concat
from pspnet_fast.ops.operator import overload

OPERATOR = "pyramid_concat"


def test_order_of_channels(backend: Backend) -> None:
    x = torch.full((1, 2, 3, 4), 7.0, device=backend.device)
    levels = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 2.0]]], device=backend.device)
    channels = {
        (bins, x_first): pyramid_concat(x, order, bins=bins, x_first=x_first)[0, :, 1, 2].tolist()
        for bins, order in (((1, 2), levels), ((2, 1), levels.roll(-1, dims=2)))
        for x_first in (True, False)
    }
    assert channels == {
        ((1, 2), True): [7, 7, 1, 2],
        ((1, 2), False): [1, 2, 7, 7],
        ((2, 1), True): [7, 7, 2, 1],
        ((2, 1), False): [2, 1, 7, 7],
    }


@pytest.mark.parametrize("layout", DENSE)
def test_answers_in_the_layout_of_x(backend: Backend, layout: str) -> None:
    if backend.name == "reference":
        pytest.skip("stock operators choose their own layout")
    inputs = draw_concat(layout=layout, device=backend.device).inputs
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert pyramid_concat(*inputs).is_contiguous(memory_format=format_)


def test_wider_dtype_wins(backend: Backend) -> None:
    x, levels = draw_concat(device=backend.device).inputs
    merged = pyramid_concat(x.bfloat16(), levels)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, pyramid_concat(x.bfloat16().float(), levels))


@pytest.mark.parametrize("bins", [[1] * 33, [1025, 2]], ids=["many", "large"])
def test_pyramids_beyond_the_tables_are_composed(backend: Backend, bins: list[int]) -> None:
    if backend.name != "cuda":
        pytest.skip("a limit of the kernels for the GPU")
    arguments = {"size": (2, 2), "channels": 1, "level_channels": 1, "batch": 1}
    check_exactness(*draw_concat(bins=bins, x_first=False, device=backend.device, **arguments))


def test_native_operators_name_what_does_not_fit(backend: Backend) -> None:
    if backend.name not in ("cpu", "cuda"):
        pytest.skip("the native operators' own")
    x = torch.zeros(1, 1, 2, 2, device=backend.device)
    with pytest.raises(TypeError, match=r"levels is Half but x Float; convert one of them"):
        overload(OPERATOR)(x, torch.zeros(1, 1, 1, device=backend.device).half(), [1], True, True)
    with pytest.raises(ValueError, match=r"grad has 4 channels, which are not 1 of x and as many again for each of 2"):
        overload(f"{OPERATOR}_backward")(x.expand(1, 4, 2, 2), 1, [1, 2], True, True)
