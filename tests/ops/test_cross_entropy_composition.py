"""The cross-entropy's composition of PyTorch operators, which stands in on devices that have no kernel for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_entropy_cases import OPTIONS, draw_options, draw_target, stock_loss
from exactness import assert_as_exact_as_stock
from running import DTYPES, LAYOUTS, Calls, differentiate, random
from torch import Tensor

import pspnet_fast
from pspnet_fast.extension import EXTENSION
from pspnet_fast.ops.cross_entropy_composed import check_options, compose

CLASSES = 5


def composed(logits: Tensor, target: Tensor, upstream: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, of the operators' own compositions."""
    given, how = check_options(logits, target, **options)
    losses, divisor, state = compose(logits, target, how.per_pixel, True, *given)
    losses.requires_grad_()
    loss = how.apply([losses], divisor, target)[0]
    (grad,) = torch.autograd.grad(loss, losses, upstream.to(loss.dtype))
    backward = torch.ops.pspnet_fast.upsample_cross_entropy_backward
    return loss.detach(), backward(grad, logits, target, state, how.per_pixel, *given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_composition(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits = random(2, CLASSES, 4, 5, dtype=dtype) * 3
    target = draw_target((2, 25, 33), CLASSES, options.get("ignore_index", 255))
    drawn = draw_options(target, CLASSES, **options)

    upstream = random(*(target.shape if options.get("reduction") == "none" else ()))
    loss, gradient = composed(logits, target, upstream, **drawn)
    stock, exact = (
        differentiate(lambda z: stock_loss(z, target, **drawn), [z], [upstream]) for z in (logits, logits.double())
    )
    assert_as_exact_as_stock(loss, stock[0][0], exact[0][0], dtype)
    assert_as_exact_as_stock(gradient, stock[1][0], exact[1][0], dtype, "gradient")
    assert gradient.dtype == dtype


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_nothing_to_score(empty: str) -> None:
    logits, target = random(2, CLASSES, 4, 5), torch.full((2, 9, 13), 255)
    loss, gradient = composed(logits, target, torch.ones(()), empty=empty)
    torch.testing.assert_close(loss, torch.tensor(torch.nan if empty == "nan" else 0.0), equal_nan=True)
    torch.testing.assert_close(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    logits = random(2, CLASSES, 4, 5, layout=layout)
    target = draw_target((2, 9, 13), CLASSES)
    _, gradient = composed(logits, target, torch.ones(()))
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert gradient.is_contiguous(memory_format=format_)
    _, (expected,) = differentiate(lambda z: stock_loss(z, target), [logits])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.skipif(EXTENSION.cpu is not None, reason="the definition runs")
@pytest.mark.parametrize(("empty", "forward"), [("nan", 9), ("zero", 6)])
def test_operators_of_a_step(empty: str, forward: int) -> None:
    """Few besides the operator itself, as each costs a launch on a GPU; backward is no operator of this package's."""
    heads, target = [logits.requires_grad_() for logits in torch.randn(2, 1, 5, 3, 4)], torch.randint(5, (1, 9, 11))
    with Calls() as calls:
        loss = pspnet_fast.dual_cross_entropy(*heads, target, empty=empty).loss
    assert len(calls.names) == forward, calls.names
    with Calls() as calls:
        torch.autograd.grad(loss, heads)
    expected = ["ones_like.default", "mul.Scalar", *["div.Tensor"] * 2, *["empty_like.default", "mul.out"] * 2]
    assert calls.names == [f"aten.{name}" for name in expected]
