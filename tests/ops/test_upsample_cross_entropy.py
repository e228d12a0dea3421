from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cross_entropy_cases import ANY_OPTIONS, BAD_OPTIONS, OPTIONS, draw_options, draw_target, stock_loss
from hypothesis import given
from hypothesis import strategies as st
from running import (
    DTYPES,
    LAYOUTS,
    Backend,
    check_compiles,
    check_exactness,
    check_exports,
    check_gradients_twice,
    check_meta,
    check_same_bits,
    check_writes_everything,
    differentiate,
    random,
)
from torch import Tensor

from pspnet_fast import upsample_cross_entropy

OPERATOR = "upsample_cross_entropy"
CLASSES = 5


def check(
    backend: Backend, options: dict[str, Any], *, low: tuple[int, int] = (4, 5), high: tuple[int, int] = (25, 33),
    dtype: torch.dtype = torch.float32, labels: torch.dtype = torch.int64, layout: str = "nchw",
) -> None:  # fmt: skip
    logits = random(2, CLASSES, *low, dtype=dtype, device=backend.device, layout=layout) * 3
    target = draw_target((2, *high), CLASSES, options.get("ignore_index", 255), labels, backend.device)
    drawn = draw_options(target, CLASSES, **options)
    check_exactness(
        lambda z: upsample_cross_entropy(z, target, **drawn), lambda z: stock_loss(z, target, **drawn), [logits]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_upsample_cross_entropy(backend: Backend, options: dict[str, Any], dtype: torch.dtype) -> None:
    backend.require(dtype, options)
    check(backend, options, dtype=dtype)


@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("ignore_index", [255, -1, -100])
def test_label_dtypes(backend: Backend, ignore_index: int, labels: torch.dtype) -> None:
    check(backend, {"ignore_index": ignore_index, "weighted": True}, labels=labels)


@pytest.mark.parametrize("ignore_index", [-100, -1, 256 + 3, -(2**63), 2**63 - 1])
def test_uint8_labels_do_not_wrap(backend: Backend, ignore_index: int) -> None:
    """A label is left out if it is ``ignore_index``, not if its last 8 bits are."""
    logits = random(1, 256, 2, 2, device=backend.device)
    target = torch.full((1, 3, 4), ignore_index % 256, dtype=torch.uint8, device=backend.device)
    loss = upsample_cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    torch.testing.assert_close(loss, stock_loss(logits, target.long(), ignore_index=-7, reduction="none"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str) -> None:
    check(backend, {}, layout=layout)


@pytest.mark.parametrize(
    ("low", "high"),
    [((1, 1), (1, 1)), ((1, 1), (7, 9)), ((4, 5), (4, 5)), ((9, 7), (4, 3)), ((1, 6), (8, 1)), ((3, 3), (17, 17))],
    ids=str,
)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_sizes(backend: Backend, low: tuple[int, int], high: tuple[int, int], align_corners: bool) -> None:
    check(backend, {"align_corners": align_corners, "reduction": "none"}, low=low, high=high)


@given(
    low=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    high=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    options=ANY_OPTIONS,
    labels=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
    layout=st.sampled_from(["nchw", "channels_last"]),
)
def test_any_shape_and_options(
    backend: Backend,
    low: tuple[int, int],
    high: tuple[int, int],
    options: dict[str, Any],
    labels: torch.dtype,
    layout: str,
) -> None:
    # Where a divisor may be zero, PyTorch's gradient is NaN and ours is zero: that has tests of its own.
    if options["denominator"] == "valid":
        options = {**options, "reduction": options["reduction"].replace("mean", "sum")}
    check(backend, options, low=low, high=high, labels=labels, layout=layout)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_large_logits(backend: Backend, reduction: str) -> None:
    logits = random(1, 3, 2, 3, device=backend.device) * 1e4
    target = draw_target((1, 5, 7), 3, device=backend.device)
    check_exactness(
        lambda z: upsample_cross_entropy(z, target, reduction=reduction),
        lambda z: stock_loss(z, target, reduction=reduction),
        [logits],
    )


@pytest.mark.parametrize("denominator", ["valid", "all", 10.0])
@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("weighted", [True, False])
def test_nothing_to_score(backend: Backend, empty: str, denominator: str | float, weighted: bool) -> None:
    logits = random(2, 3, 2, 3, device=backend.device)
    target = torch.full((2, 5, 7), 255, device=backend.device)
    weight = torch.ones(3, device=backend.device) if weighted else None
    (loss,), (gradient,) = differentiate(
        lambda z: upsample_cross_entropy(z, target, weight=weight, empty=empty, denominator=denominator), [logits]
    )
    expected = torch.nan if denominator == "valid" and empty == "nan" else 0.0
    torch.testing.assert_close(loss, torch.full_like(loss, expected), equal_nan=True)
    torch.testing.assert_close(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_infinite_denominator(backend: Backend, empty: str) -> None:
    target = draw_target((1, 5, 7), 3, device=backend.device)
    loss = on(backend, target, denominator=torch.inf, empty=empty)
    (total,), (gradient,) = differentiate(loss, [random(1, 3, 2, 3, device=backend.device)])
    assert total.item() == 0
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_every_pixel_weighs_nothing(backend: Backend, empty: str) -> None:
    logits = random(1, 3, 2, 3, device=backend.device)
    target = draw_target((1, 5, 7), 3, device=backend.device)
    none = torch.zeros(1, 5, 7, device=backend.device)
    (loss,), (gradient,) = differentiate(
        lambda z: upsample_cross_entropy(z, target, pixel_weight=none, empty=empty), [logits]
    )
    torch.testing.assert_close(loss, torch.full_like(loss, torch.nan if empty == "nan" else 0.0), equal_nan=True)
    torch.testing.assert_close(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_empty_batch(backend: Backend, reduction: str) -> None:
    logits = random(0, 3, 2, 3, device=backend.device)
    target = torch.zeros(0, 5, 7, dtype=torch.int64, device=backend.device)
    (loss,), (gradient,) = differentiate(lambda z: upsample_cross_entropy(z, target, reduction=reduction), [logits])
    expected = {"none": torch.zeros(0, 5, 7), "sum": torch.tensor(0.0), "mean": torch.tensor(torch.nan)}[reduction]
    torch.testing.assert_close(loss.cpu(), expected, equal_nan=True)
    assert gradient.shape == logits.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_give_a_float32_loss(backend: Backend, dtype: torch.dtype) -> None:
    logits = random(2, CLASSES, 3, 4, dtype=dtype, device=backend.device)
    target = draw_target((2, 9, 13), CLASSES, device=backend.device)
    (loss,), (gradient,) = differentiate(lambda z: upsample_cross_entropy(z, target), [logits])
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, stock_loss(logits.double(), target).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_dtype_of_pixel_weight_does_not_matter(backend: Backend, reduction: str, dtype: torch.dtype) -> None:
    logits = random(1, CLASSES, 2, 3, device=backend.device)
    target = draw_target((1, 5, 7), CLASSES, device=backend.device)
    pixel_weight = draw_target((1, 5, 7), 3, ignored=0, device=backend.device)
    loss = functools.partial(upsample_cross_entropy, target=target, reduction=reduction)
    torch.testing.assert_close(
        differentiate(functools.partial(loss, pixel_weight=pixel_weight.to(dtype)), [logits]),
        differentiate(functools.partial(loss, pixel_weight=pixel_weight.float()), [logits]),
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_gradcheck(backend: Backend, reduction: str, align_corners: bool) -> None:
    logits = random(1, 3, 2, 3, dtype=torch.float64, device=backend.device)
    target = draw_target((1, 5, 7), 3, device=backend.device)
    options = draw_options(
        target, 3, weighted=True, pixels_weighted=True, label_smoothing=0.1, reduction=reduction,
        align_corners=align_corners,
    )  # fmt: skip
    check_gradients_twice(lambda z: upsample_cross_entropy(z, target, **options), [logits])


def on(backend: Backend, target: Tensor | None = None, **options: Any) -> Any:
    target = draw_target((2, 9, 13), 3, device=backend.device) if target is None else target
    return functools.partial(upsample_cross_entropy, target=target, **options)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_same_bits_every_run(backend: Backend, reduction: str) -> None:
    target = draw_target((2, 25, 33), CLASSES, device=backend.device)
    check_same_bits(on(backend, target, reduction=reduction), [random(2, CLASSES, 4, 5, device=backend.device)])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_writes_every_element(backend: Backend, reduction: str, layout: str) -> None:
    logits = random(2, 3, 3, 4, device=backend.device, layout=layout)
    check_writes_everything(on(backend, reduction=reduction), [logits])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_meta(backend: Backend, reduction: str, layout: str) -> None:
    def loss(logits: Tensor) -> Tensor:
        return upsample_cross_entropy(logits, torch.zeros_like(target, device=logits.device), reduction=reduction)

    target = draw_target((2, 9, 13), 3)
    check_meta(loss, [random(2, 3, 3, 4, device=backend.device, layout=layout)], strides=backend.name != "reference")


def test_compile(backend: Backend) -> None:
    def loss(logits: Tensor) -> Tensor:
        target = torch.arange(9 * 13, device=logits.device).view(1, 9, 13).expand(logits.shape[0], -1, -1) % 3
        return upsample_cross_entropy(logits * 2, target, ignore_index=1) + 1

    inputs = ([random(*size, device=backend.device)] for size in ((2, 3, 3, 4), (1, 3, 5, 2)))
    check_compiles(loss, *inputs, backend=backend.compiler)


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(on(backend), [random(2, 3, 3, 4, device=backend.device)], backend.operator(OPERATOR))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_does_not_lose_precision(backend: Backend, dtype: torch.dtype) -> None:
    logits = random(2, 3, 3, 4, dtype=dtype, device=backend.device)
    loss = on(backend)
    expected = differentiate(loss, [logits])

    def under_autocast(z: Tensor) -> Tensor:
        with torch.autocast(backend.device.type, dtype=torch.bfloat16):
            return loss(z)

    torch.testing.assert_close(differentiate(under_autocast, [logits]), expected)


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


@pytest.mark.parametrize(("changed", "error", "words"), BAD_OPTIONS, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_bad_arguments(backend: Backend, changed: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"target": torch.zeros(2, 8, 10, dtype=torch.int64), **changed}
    moved: dict[str, Any] = {k: v.to(backend.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(error, match=words):
        upsample_cross_entropy(torch.zeros(2, 3, 4, 5, device=backend.device), **moved)


@pytest.mark.parametrize(
    ("logits", "error", "words"),
    [
        (torch.zeros(3, 4, 5), ValueError, r"logits must be \[B, C, H, W\], not of shape \(3, 4, 5\)"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int32), TypeError, r"logits must be floating-point, not torch.int32"),
        (torch.zeros(2, 3, 4, 0), ValueError, r"logits has no pixels: its shape is \(2, 3, 4, 0\)"),
    ],
)
def test_bad_logits(backend: Backend, logits: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        upsample_cross_entropy(
            logits.to(backend.device), torch.zeros(2, 8, 10, dtype=torch.int64, device=backend.device)
        )
