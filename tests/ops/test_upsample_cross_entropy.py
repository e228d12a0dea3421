from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cross_entropy_cases import OPTIONS, draw_loss, draw_options, draw_target, stock_loss
from exactness import assert_as_exact_as_stock
from running import DTYPES, LABELS, LAYOUTS, Backend, Calls, check_exactness, differentiate, random
from torch import Tensor

from pspnet_fast import dual_cross_entropy, upsample_cross_entropy
from pspnet_fast.extension import EXTENSION
from pspnet_fast.ops.cross_entropy_composed import check_options, compose

OPERATOR = "upsample_cross_entropy"


@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("ignore_index", [255, -1, -100])
def test_label_dtypes(backend: Backend, ignore_index: int, labels: torch.dtype) -> None:
    options: dict[str, Any] = {"ignore_index": ignore_index, "weighted": True}
    check_exactness(*draw_loss(labels=labels, device=backend.device, **options))


@pytest.mark.parametrize("ignore_index", [-100, -1, 256 + 3, -(2**63), 2**63 - 1])
def test_uint8_labels_do_not_wrap(backend: Backend, ignore_index: int) -> None:
    """A label is left out if it is ``ignore_index``, not if its last 8 bits are."""
    logits = random(1, 256, 2, 2, device=backend.device)
    target = torch.full((1, 3, 4), ignore_index % 256, dtype=torch.uint8, device=backend.device)
    loss = upsample_cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    torch.testing.assert_close(loss, stock_loss(logits, target.long(), ignore_index=-7, reduction="none"))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_large_logits(backend: Backend, reduction: str) -> None:
    check_exactness(*draw_loss((2, 3), (5, 7), classes=3, scale=1e4, reduction=reduction, device=backend.device))


NOTHING: dict[str, dict[str, Any]] = {
    **{f"no label, {by}": {"ignored": 1.0, "denominator": by} for by in ("valid", "all", 10.0)},
    "no label, weighted": {"ignored": 1.0, "weighted": True},
    "pixels of no weight": {"pixel_weight": torch.zeros(2, 5, 7)},
    "infinite denominator": {"denominator": torch.inf},
}


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING.keys())
def test_nothing_to_score(backend: Backend, options: dict[str, Any], empty: str) -> None:
    fused, _, logits = draw_loss((2, 3), (5, 7), classes=3, empty=empty, device=backend.device, **options)
    (loss,), (gradient,) = differentiate(fused, logits)
    expected = torch.nan if options.get("denominator", "valid") == "valid" and empty == "nan" else 0.0
    torch.testing.assert_close(loss, torch.full_like(loss, expected), equal_nan=True)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_give_a_float32_loss(backend: Backend, dtype: torch.dtype) -> None:
    fused, definition, (logits,) = draw_loss((3, 4), (9, 13), dtype=dtype, device=backend.device)
    (loss,), (gradient,) = differentiate(fused, [logits])
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, definition(logits.double()).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_dtype_of_pixel_weight_does_not_matter(backend: Backend, reduction: str, dtype: torch.dtype) -> None:
    logits = random(1, 5, 2, 3, device=backend.device)
    target = draw_target((1, 5, 7), 5, device=backend.device)
    pixel_weight = draw_target((1, 5, 7), 3, ignored=0, device=backend.device)
    loss = functools.partial(upsample_cross_entropy, target=target, reduction=reduction)
    torch.testing.assert_close(
        differentiate(functools.partial(loss, pixel_weight=pixel_weight.to(dtype)), [logits]),
        differentiate(functools.partial(loss, pixel_weight=pixel_weight.float()), [logits]),
    )


@pytest.mark.parametrize(
    ("label", "labels"), [(label, labels) for label in (3, 200, -2) for labels in (torch.int64, torch.int32)]
    + [(label, torch.int64) for label in (2**32, 2**63 - 1, -(2**63))] + [(-(2**31), torch.int32)],
)  # fmt: skip
def test_label_out_of_range(backend: Backend, label: int, labels: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_FAST_CHECK_LABELS", "1")  # a GPU is waited for only then
    target = torch.zeros(1, 4, 4, dtype=labels, device=backend.device)
    target[0, 2, 1] = label
    with pytest.raises(IndexError, match=rf"Target {label} is out of bounds"):
        upsample_cross_entropy(torch.zeros(1, 3, 2, 2, device=backend.device), target)


def test_label_out_of_range_is_told_by_the_next_call(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend.name != "cuda" and backend.device.type != "cuda":
        pytest.skip("on the CPU the call itself raises")
    monkeypatch.delenv("PSPNET_FAST_CHECK_LABELS", raising=False)
    logits = random(1, 3, 2, 2, device=backend.device)
    target = draw_target((1, 9, 9), 3, device=backend.device)
    ignored = target.masked_fill(target == 1, 255)

    without_them = upsample_cross_entropy(logits, target.masked_fill(target == 1, 77))
    if backend.device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(IndexError, match="Target 77 is out of bounds"):
        upsample_cross_entropy(logits, target)
    torch.testing.assert_close(without_them, upsample_cross_entropy(logits, ignored))


# ---- The composition of PyTorch operators, which stands in on devices that have no kernel ---------------------------


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
    logits = random(2, 5, 4, 5, dtype=dtype) * 3
    target = draw_target((2, 25, 33), 5, options.get("ignore_index", 255))
    drawn = draw_options(target, 5, **options)

    upstream = random(*(target.shape if options.get("reduction") == "none" else ()))
    loss, gradient = composed(logits, target, upstream, **drawn)
    stock, exact = (
        differentiate(lambda z: stock_loss(z, target, **drawn), [z], [upstream]) for z in (logits, logits.double())
    )
    assert_as_exact_as_stock(loss, stock[0][0], exact[0][0], dtype)
    assert_as_exact_as_stock(gradient, stock[1][0], exact[1][0], dtype, "gradient")
    assert gradient.dtype == dtype


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_composition_with_nothing_to_score(empty: str) -> None:
    logits, target = random(2, 5, 4, 5), torch.full((2, 9, 13), 255)
    loss, gradient = composed(logits, target, torch.ones(()), empty=empty)
    torch.testing.assert_close(loss, torch.tensor(torch.nan if empty == "nan" else 0.0), equal_nan=True)
    torch.testing.assert_close(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_composition(layout: str) -> None:
    logits = random(2, 5, 4, 5, layout=layout)
    target = draw_target((2, 9, 13), 5)
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
        loss = dual_cross_entropy(*heads, target, empty=empty).loss
    assert len(calls.names) == forward, calls.names
    with Calls() as calls:
        torch.autograd.grad(loss, heads)
    expected = ["ones_like.default", "mul.Scalar", *["div.Tensor"] * 2, *["empty_like.default", "mul.out"] * 2]
    assert calls.names == [f"aten.{name}" for name in expected]
