"""The Triton functions behind the cross-entropy operators and upsample_argmax, called directly.

What the operators do with them is tested with the other back ends. Here: the tiles and blocks that the kernels cut
their work into, several launches, numbers that are not finite, and labels out of range as a GPU meets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import draw_options, draw_target, stock_loss
from exactness import assert_as_exact_as_stock
from running import INTERPRETED, home, poisoned, random
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

import pspnet_fast  # noqa: F401  defines the operators
from pspnet_fast.loss_options import LossOptions
from pspnet_fast.triton import cross_entropy, label_flag
from pspnet_fast.triton.upsample_argmax import upsample_argmax

DEVICE = home("triton")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="without a GPU, kernels run with TRITON_INTERPRET=1 only"
)
# The interpreter is not reliable in bfloat16.
DTYPES = [torch.float32, torch.float64, torch.float16]


def packed(**options: Any) -> LossOptions:
    defaults = {
        "weight": None,
        "pixel_weight": None,
        "ignore_index": 255,
        "label_smoothing": 0.0,
        "align_corners": True,
    }
    return LossOptions(**{**defaults, **options})


def fused(
    heads: Sequence[Tensor], target: Tensor, upstream: Sequence[Tensor], reduction: str = "sum", **options: Any
) -> list[Tensor]:
    """The sums or maps of losses of one or two heads, and the gradients by their logits."""
    given, per_pixel = packed(**options), reduction == "none"
    if len(heads) == 1:
        losses, _, state = cross_entropy.upsample_cross_entropy(heads[0], target, per_pixel, True, *given)
        found, states = [losses], [state]
    else:
        result = cross_entropy.dual_cross_entropy(*heads, target, per_pixel, True, False, False, *given)
        found, states = list(result[:2]), list(result[3:5])
    backward = torch.ops.pspnet_fast.upsample_cross_entropy_backward_triton
    grads = [
        backward(u, head, target, state, per_pixel, *given)
        for u, head, state in zip(upstream, heads, states, strict=True)
    ]
    return [*found, *grads]


def stock(heads: Sequence[Tensor], target: Tensor, upstream: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """The same in stock operators, in the heads' own dtype."""
    leaves = [head.detach().requires_grad_() for head in heads]
    totals = [stock_loss(leaf, target, **options) for leaf in leaves]
    grads = torch.autograd.grad(totals, leaves, [u.to(t.dtype) for u, t in zip(upstream, totals, strict=True)])
    return [*(total.detach() for total in totals), *grads]


def check(
    heads: Sequence[Tensor], high: tuple[int, int], *, labels: torch.dtype = torch.int64, reduction: str = "sum",
    **options: Any,
) -> None:  # fmt: skip
    batch, classes = heads[0].shape[:2]
    target = draw_target((batch, *high), classes, options.get("ignore_index", 255), labels, DEVICE)
    drawn = {"reduction": reduction, **draw_options(target, classes, **options)}
    real = torch.float64 if heads[0].dtype == torch.float64 else torch.float32
    shape = tuple(target.shape) if reduction == "none" else ()
    upstream = [random(*shape, dtype=real, device=DEVICE) for _ in heads]
    actual = fused(heads, target, upstream, **drawn)
    exact = stock([head.double() for head in heads], target, upstream, **drawn)
    for a, s, e in zip(actual, stock(heads, target, upstream, **drawn), exact, strict=True):
        assert_as_exact_as_stock(a, s, e, heads[0].dtype)
    for grad, head in zip(actual[len(heads) :], heads, strict=True):
        assert grad.dtype == head.dtype


def logits(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "nchw", scale: float = 3) -> Tensor:
    return random(*shape, dtype=dtype, device=DEVICE, layout=layout) * scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighted": True, "align_corners": False},
        {"label_smoothing": 0.1, "ignore_index": -1},
        {"pixels_weighted": True, "weighted": True, "label_smoothing": 0.2, "reduction": "none"},
    ],
    ids=["default", "weight", "smoothing", "everything"],
)
def test_cross_entropy(options: dict[str, Any], dtype: torch.dtype) -> None:
    check([logits(2, 5, 3, 4, dtype=dtype)], (11, 18), **options)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("aux_size", [(3, 4), (2, 6)], ids=["alike", "apart"])
def test_two_heads(aux_size: tuple[int, int], reduction: str) -> None:
    check([logits(2, 3, 3, 4), logits(2, 3, *aux_size)], (9, 13), reduction=reduction, pixels_weighted=True)


@pytest.mark.parametrize(
    ("shape", "high"),
    [
        ((1, 3, 2, 40), (4, 43)),  # three blocks of cells, two of columns
        ((1, 9, 2, 17), (5, 40)),  # two blocks of classes
        ((1, 2, 9, 3), (4, 2)),  # cells without a pixel
        ((1, 2, 4, 4), (4, 4)),
        ((2, 2, 1, 1), (7, 40)),
        ((1, 2, 5, 1), (1, 6)),
        ((1, 1, 2, 3), (5, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_sizes(shape: tuple[int, int, int, int], high: tuple[int, int], align_corners: bool) -> None:
    check([logits(*shape)], high, align_corners=align_corners)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("labels", [torch.int32, torch.uint8], ids=str)
def test_layouts_and_label_dtypes(layout: str, labels: torch.dtype) -> None:
    head = logits(2, 3, 3, 4, layout=layout)
    check([head], (7, 9), labels=labels)
    target = torch.zeros(2, 7, 9, dtype=torch.int64, device=DEVICE)
    state = cross_entropy.upsample_cross_entropy(head, target, False, True, *packed())[2]
    assert state.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_large_logits(reduction: str) -> None:
    check([logits(1, 3, 2, 3, scale=1e4)], (5, 7), reduction=reduction)


@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("values", [[torch.nan], [torch.inf], [-torch.inf], [torch.inf, -torch.inf]], ids=str)
def test_numbers_that_are_not_finite(values: list[float], align_corners: bool) -> None:
    head = logits(2, 3, 3, 4)
    for value in values:
        head[0, torch.randint(3, ()), torch.randint(3, ()), torch.randint(4, ())] = value
        head[1, 0, 2, 3] = value  # the first class, too
    target = draw_target((2, 8, 10), 3, device=DEVICE)
    upstream = [random(2, 8, 10, device=DEVICE)]
    options = {"reduction": "none", "align_corners": align_corners}
    expected = stock([head], target, upstream, **options)
    torch.testing.assert_close(fused([head], target, upstream, **options), expected, equal_nan=True)
    up = F.interpolate(head, (8, 10), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(upsample_argmax(head, 8, 10, align_corners, torch.int64), up.argmax(1))


def test_a_masked_class_has_no_share() -> None:
    head = logits(1, 3, 2, 3)
    head[:, 0] = -1e30
    target = draw_target((1, 5, 7), 2, device=DEVICE).clamp(min=1)
    upstream = [torch.ones((), device=DEVICE)]
    total, grad = fused([head], target, upstream)
    labels = target.where(target == 255, target - 1)
    expected_total, expected_grad = stock([head[:, 1:]], labels, upstream, reduction="sum")
    torch.testing.assert_close(total, expected_total)
    torch.testing.assert_close(grad, F.pad(expected_grad, (0, 0, 0, 0, 1, 0)))


@pytest.mark.parametrize("size", [(3, 4), (2, 5)], ids=["alike", "apart"])
def test_labels_and_correct(size: tuple[int, int]) -> None:
    main, aux = logits(2, 3, 3, 4), logits(2, 3, *size)
    target = draw_target((2, 9, 13), 3, device=DEVICE)
    best = F.interpolate(main, (9, 13), mode="bilinear", align_corners=True).argmax(1)
    target[0] = target[0].where(target[0] == 255, best[0])
    found = cross_entropy.dual_cross_entropy(main, aux, target, False, False, True, True, *packed())
    assert [t.numel() for t in found[3:5]] == [0, 0]
    torch.testing.assert_close(found[5], best)
    torch.testing.assert_close(found[6], (best == target).sum())
    alone = cross_entropy.dual_cross_entropy(main, aux, target, False, False, False, False, *packed())
    assert [t.numel() for t in alone] == [1, 1, 1, 0, 0, 0, 0]


def test_divisor_weighs_the_pixels_that_count() -> None:
    target = draw_target((2, 9, 13), 3, device=DEVICE)
    drawn = draw_options(target, 3, weighted=True, pixels_weighted=True)
    divisor = cross_entropy.upsample_cross_entropy(logits(2, 3, 3, 4), target, False, False, *packed(**drawn))[1]
    valid = target != 255
    expected = (drawn["weight"][target.where(valid, 0)] * drawn["pixel_weight"])[valid].sum()
    torch.testing.assert_close(divisor, expected)


def test_nothing_to_score() -> None:
    target = torch.full((1, 5, 7), 255, device=DEVICE)
    total, divisor, state = cross_entropy.upsample_cross_entropy(logits(1, 3, 2, 3), target, False, True, *packed())
    assert (total.item(), divisor.item(), state.abs().max().item()) == (0, 0, 0)


@pytest.mark.parametrize("per_pixel", [True, False])
def test_empty_batch(per_pixel: bool) -> None:
    heads = [logits(0, 3, 2, 3), logits(0, 3, 2, 3)]
    target = torch.zeros(0, 5, 7, dtype=torch.int64, device=DEVICE)
    found = cross_entropy.dual_cross_entropy(*heads, target, per_pixel, True, True, True, *packed())
    total, divisor, main_state, labels, correct = found[0], found[2], found[3], found[5], found[6]
    assert total.shape == (target.shape if per_pixel else ())
    assert (divisor.item(), correct.item(), labels.shape) == (0, 0, (0, 5, 7))
    assert main_state.shape == ((0,) if per_pixel else heads[0].shape)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_same_bits_and_every_element_written(reduction: str) -> None:
    heads = [logits(1, 3, 3, 4), logits(1, 3, 3, 4)]
    target = draw_target((1, 9, 13), 3, device=DEVICE)
    upstream = [random(*((1, 9, 13) if reduction == "none" else ()), device=DEVICE) for _ in heads]
    first = fused(heads, target, upstream, reduction=reduction)
    with poisoned():
        again = fused(heads, target, upstream, reduction=reduction)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU is not waited for")
@pytest.mark.parametrize("label", [3, -2])
def test_label_out_of_range(label: int) -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.int32)
    target[0, 2, 1] = label
    with pytest.raises(IndexError, match=rf"^Target {label} is out of bounds\.$"):
        cross_entropy.upsample_cross_entropy(torch.zeros(1, 3, 2, 2), target, False, False, *packed())


@pytest.mark.parametrize("label", [3, 2**32, -2, -(2**63)])
def test_label_out_of_range_is_noted(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PSPNET_FAST_CHECK_LABELS", raising=False)
    if DEVICE.type == "cpu":  # the kernels do on the CPU what they do on a GPU
        noted = torch.full((1,), label_flag.NOTHING)
        monkeypatch.setattr(cross_entropy, "watch_labels", lambda *_: noted)
    else:
        noted = label_flag.watch_labels(torch.zeros(1, 1, 1, dtype=torch.int64, device=DEVICE), 1, 255)
    head, clean = logits(1, 3, 2, 3), draw_target((1, 7, 9), 3, device=DEVICE)
    clean[0, 2, 1] = 255
    bad = clean.clone()
    bad[0, 2, 1] = label
    upstream = [torch.ones((), device=DEVICE)]
    expected = fused([head], clean, upstream)  # first: on a GPU the next call after that of a bad label raises
    torch.testing.assert_close(fused([head], bad, upstream), expected, rtol=0, atol=0)
    with pytest.raises(IndexError, match=rf"Target {label} is out of bounds, in an earlier call"):
        label_flag.raise_noted(noted, "in an earlier call")
    label_flag.raise_noted(noted, "which has been told")


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_label_out_of_range_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def total(label: int) -> Tensor:
        target = torch.full((1, 7, 9), label, device=DEVICE)
        return cross_entropy.upsample_cross_entropy(logits(1, 3, 2, 3), target, False, True, *packed())[0]

    monkeypatch.delenv("PSPNET_FAST_CHECK_LABELS", raising=False)
    assert total(7).item() == 0
    with pytest.raises(IndexError, match="Target 7 is out of bounds, in the target of an earlier call"):
        total(1)
    assert total(1).isfinite()
    monkeypatch.setenv("PSPNET_FAST_CHECK_LABELS", "1")
    with pytest.raises(IndexError, match="Target 8 is out of bounds, in the target of this call"):
        total(8)
    assert total(1).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_upsample_argmax(align_corners: bool, layout: str, dtype: torch.dtype) -> None:
    head = logits(2, 4, 3, 4, dtype=dtype, layout=layout)
    head[:, 2] = head[:, 1]  # the lower class wins a tie
    up = F.interpolate(head.double(), (9, 40), mode="bilinear", align_corners=align_corners)
    best = up.argmax(dim=1)
    for labels in (torch.int64, torch.uint8):
        torch.testing.assert_close(upsample_argmax(head, 9, 40, align_corners, labels), best.to(labels))
