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
    "reduction": "mean",
    "denominator": "valid",
    "empty": "nan",
    "align_corners": True,
    "pixel_weight": None,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_composition(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits = random(2, CLASSES, 4, 5, dtype=dtype) * 3
    target = draw_target((2, 25, 33), CLASSES, options.get("ignore_index", 255))
    drawn = draw_options(target, CLASSES, **options)
    packed = check_options(logits, target, **{**DEFAULTS, **drawn})

    loss, scale, state = compose_forward(logits, target, True, packed)
    upstream = random(*loss.shape)
    gradient = compose_backward(upstream.to(loss.dtype), scale, logits, target, state, packed)
    stock, exact = (
        differentiate(lambda z: stock_loss(z, target, **drawn), [z], [upstream]) for z in (logits, logits.double())
    )
    assert_as_exact_as_stock(loss, stock[0][0], exact[0][0], dtype)
    assert_as_exact_as_stock(gradient, stock[1][0], exact[1][0], dtype, "gradient")
    assert gradient.dtype == dtype


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_nothing_to_score(empty: str) -> None:
    logits, target = random(2, CLASSES, 4, 5), torch.full((2, 9, 13), 255)
    packed = check_options(logits, target, **{**DEFAULTS, "empty": empty})
    loss, scale, state = compose_forward(logits, target, True, packed)
    torch.testing.assert_close(loss, torch.tensor(torch.nan if empty == "nan" else 0.0), equal_nan=True)
    gradient = compose_backward(torch.ones(()), scale, logits, target, state, packed)
    torch.testing.assert_close(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    logits = random(2, CLASSES, 4, 5, layout=layout)
    target = draw_target((2, 9, 13), CLASSES)
    packed = check_options(logits, target, **DEFAULTS)
    loss, scale, state = compose_forward(logits, target, True, packed)
    gradient = compose_backward(torch.ones_like(loss), scale, logits, target, state, packed)
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert gradient.is_contiguous(memory_format=format_)
    _, (expected,) = differentiate(lambda z: stock_loss(z, target), [logits])
    torch.testing.assert_close(gradient, expected)
