"""The cross-entropy's composition of PyTorch operators, which stands in on devices that have no kernel for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_entropy_cases import OPTIONS, draw_options, draw_target, stock_loss
from exactness import assert_as_exact_as_stock
from running import DTYPES, LAYOUTS, differentiate, random

from pspnet_fast.ops._cross_entropy import check_options, compose_backward, compose_forward

CLASSES = 5
DEFAULTS: dict[str, Any] = {
    "weight": None,
    "ignore_index": 255,
    "label_smoothing": 0.0,
    "reduction": "sum",
    "denominator": "valid",
    "empty": "nan",
    "align_corners": True,
    "pixel_weight": None,
}
# The operators sum, or do not; which mean is taken of it is decided outside.
SUMS = {name: {"reduction": "sum", **options} for name, options in OPTIONS.items() if "denominator" not in options}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", SUMS.values(), ids=SUMS.keys())
def test_composition(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits = random(2, CLASSES, 4, 5, dtype=dtype) * 3
    target = draw_target((2, 25, 33), CLASSES, options.get("ignore_index", 255))
    drawn = draw_options(target, CLASSES, **options)
    packed, _ = check_options(logits, target, **{**DEFAULTS, **drawn})
    upstream = random(*(target.shape if packed.per_pixel else ()))

    total, _, state = compose_forward(logits, target, True, packed)
    gradient = compose_backward(upstream.to(total.dtype), logits, target, state, packed)
    stock, exact = (
        differentiate(lambda z: stock_loss(z, target, **drawn), [z], [upstream]) for z in (logits, logits.double())
    )
    assert_as_exact_as_stock(total, stock[0][0], exact[0][0], dtype)
    assert_as_exact_as_stock(gradient, stock[1][0], exact[1][0], dtype, "gradient")
    assert gradient.dtype == dtype


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("pixels_weighted", [True, False])
def test_divisor_is_that_of_pytorchs_mean(weighted: bool, pixels_weighted: bool) -> None:
    logits = random(2, CLASSES, 4, 5, dtype=torch.float64)
    target = draw_target((2, 25, 33), CLASSES)
    drawn = draw_options(target, CLASSES, weighted=weighted, pixels_weighted=pixels_weighted)
    packed, _ = check_options(logits, target, **{**DEFAULTS, **drawn})
    total, divisor, _ = compose_forward(logits, target, False, packed)
    torch.testing.assert_close(total / divisor, stock_loss(logits, target, **drawn))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    logits = random(2, CLASSES, 4, 5, layout=layout)
    target = draw_target((2, 9, 13), CLASSES)
    packed, _ = check_options(logits, target, **DEFAULTS)
    total, _, state = compose_forward(logits, target, True, packed)
    gradient = compose_backward(torch.ones_like(total), logits, target, state, packed)
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert gradient.is_contiguous(memory_format=format_)
    _, (expected,) = differentiate(lambda z: stock_loss(z, target, reduction="sum"), [logits])
    torch.testing.assert_close(gradient, expected)
