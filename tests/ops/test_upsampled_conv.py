"""The convolution over levels that are too large for the kernels of GPUs: of upsampled maps, by cuDNN."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from running import LAYOUTS, Backend, check_exactness, check_gradients_twice, random
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pspnet_fast import pyramid_conv, reference
from pspnet_fast.backend import use_backend
from pspnet_fast.ops.pyramid_conv import upsampled_conv

OPERATOR = "upsample_add"
MODULE = sys.modules[upsampled_conv.__module__]
BINS = [(3, 30), (4, 5)]


def draw(bins: Sequence[tuple[int, int]], device: Any) -> list[Tensor]:
    levels = random(2, 3, sum(h * w for h, w in bins), device=device)
    weight = random(4, 5 + 3 * len(bins), 3, 1, device=device) / 6
    return [random(2, 5, 7, 11, device=device), levels, weight, random(4, device=device)]


@pytest.mark.parametrize("x_first", [True, False], ids=["x_first", "x_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_is_the_same_function(backend: Backend, layout: str, align_corners: bool, x_first: bool) -> None:
    def fused(*tensors: Tensor) -> Tensor:
        y = upsampled_conv(*tensors, [n for size in BINS for n in size], align_corners, x_first)
        assert y.is_contiguous(memory_format=torch.channels_last) is (layout == "channels_last")
        return y

    def definition(*tensors: Tensor) -> Tensor:
        return reference.pyramid_conv(*tensors, bins=BINS, align_corners=align_corners, x_first=x_first)

    x, *others = draw(BINS, backend.device)
    check_exactness(fused, definition, [LAYOUTS[layout](x), *others])
    if layout == "nchw":
        check_gradients_twice(fused, [x, *others])


@pytest.mark.parametrize(
    ("device", "bins", "forced", "upsampled"),
    [
        ("cuda:0", BINS, "auto", True),
        ("cuda:0", [(28, 1), (5, 32)], "auto", True),
        ("cuda:0", [(6, 6), (26, 26)], "auto", False),
        ("cuda:0", BINS, "triton", False),
        ("cpu", BINS, "auto", False),
    ],
    ids=str,
)
def test_large_levels_on_a_gpu(
    device: str, bins: list[tuple[int, int]], forced: str, upsampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A back end that is asked for gets them anyway. No tensor has memory, so that no GPU is needed."""
    called: list[object] = []
    monkeypatch.setattr(MODULE, "upsampled_conv", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(MODULE, "CONV", lambda *_: None)
    with FakeTensorMode(), use_backend(forced):
        pyramid_conv(*draw(bins, device), bins=bins)
    assert bool(called) is upsampled
