"""Infinite and NaN inputs: they reach what they reach in PyTorch's own operators, and nothing else.

An interpolation weight of 0 times an infinite or NaN number is NaN, so which inputs an output is read from matters even
where their weights are 0. The stock chain in float64 on the CPU says what is right. On a GPU PyTorch reads both
neighbours on an axis of equal sizes, too, and cuDNN has algorithms that spread a NaN over all that they transform.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from cross_entropy_cases import draw_target, stock_loss
from drawing import draw_add, draw_concat, draw_conv
from running import INTERPRETED, LAYOUTS, Backend, differentiate, random
from torch import Tensor

from pspnet_fast import reference, upsample_argmax, upsample_cross_entropy

OPERATOR = "pyramid_conv"  # all operators here have the same back ends
# Equal sizes, one equal side, a single node, nodes that are hit exactly, smaller results. Left out are sizes such as 1
# to 5, where a centre lies on a node or 1e-17 behind it, as multiply-adds are fused or not.
SIZES = {
    "equal": ((3, 4), (3, 4)),
    "equal_rows": ((3, 4), (3, 9)),
    "equal_columns": ((3, 4), (8, 4)),
    "from_1x1": ((1, 1), (4, 3)),
    "to_1x1": ((3, 4), (1, 1)),
    "corners_hit": ((3, 4), (5, 10)),
    "centres_hit": ((6, 9), (2, 3)),
    "any": ((3, 4), (8, 11)),
    "smaller": ((7, 8), (4, 5)),
}
# Maps with levels of their own size, smaller ones, larger ones, and of one row or column.
PYRAMIDS = {
    "equal": ((6, 6), (1, 2, 6)),
    "equal_rows": ((3, 8), (3,)),
    "equal_columns": ((8, 3), (1, 3)),
    "any": ((7, 12), (1, 2, 3, 6)),
    "wide": ((2, 70), (2, 5)),
    "single": ((1, 1), (1, 2)),
}
PLACES = 2 if INTERPRETED else 5  # how many numbers are replaced, each in an image of its own
each_corners = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
each_layout = pytest.mark.parametrize("layout", ["nchw", "channels_last"])
VALUES = [torch.inf, torch.nan] if INTERPRETED else [torch.inf, -torch.inf, torch.nan]
each_value = pytest.mark.parametrize("value", VALUES, ids=str)


@pytest.fixture(autouse=True)
def _kernels_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.callspec.params["backend"] == "reference":
        pytest.skip("the definition is the oracle; in float32 its own weights are rounded to 0 in other places")
    # The convolution over x alone, which is PyTorch's: without cuDNN it reads what it must.
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)


@each_value
@each_corners
@each_layout
@pytest.mark.parametrize("size", SIZES)
def test_upsample_argmax(backend: Backend, size: str, layout: str, align_corners: bool, value: float) -> None:
    low, high = SIZES[size]
    nodes = low[0] * low[1]
    logits = random(1, 3, *low).repeat(nodes, 1, 1, 1)
    for node in range(nodes):
        logits[node, 1 + node % 2].view(-1)[node] = value
    labels = upsample_argmax(LAYOUTS[layout](logits.to(backend.device)), high, align_corners=align_corners)
    expected = reference.upsample_argmax(logits.double(), high, align_corners=align_corners)
    torch.testing.assert_close(labels.cpu(), expected)


def test_an_infinite_logit_stays_at_its_pixel(backend: Backend) -> None:
    logits = torch.zeros(1, 2, 1, 3, device=backend.device)
    logits[0, 1, 0, 2] = torch.inf
    assert upsample_argmax(logits, (1, 3)).tolist() == [[[0, 0, 1]]]


@each_value
@each_corners
@pytest.mark.parametrize(("layout", "smoothing"), [("nchw", 0.0), ("channels_last", 0.1)])
@pytest.mark.parametrize("size", [size for size in SIZES if size != "from_1x1"])
def test_upsample_cross_entropy(
    backend: Backend, size: str, smoothing: float, layout: str, align_corners: bool, value: float
) -> None:
    low, high = SIZES[size]
    places = torch.randperm(low[0] * low[1])[: 2 * PLACES]
    logits = random(1, 3, *low).repeat(len(places), 1, 1, 1)
    for image, node in enumerate(places):
        logits[image, image % 3].view(-1)[node] = value
    target = draw_target((len(places), *high), 3)
    on_device = target.to(backend.device)
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": smoothing, "align_corners": align_corners}
    (loss,), (gradient,) = differentiate(
        lambda z: upsample_cross_entropy(z, on_device, **options), [LAYOUTS[layout](logits.to(backend.device))]
    )
    (expected,), (expected_gradient,) = differentiate(lambda z: stock_loss(z, target, **options), [logits.double()])
    torch.testing.assert_close(loss.cpu(), expected.float(), equal_nan=True)
    finite = expected_gradient.isfinite()
    assert finite.any()
    torch.testing.assert_close(gradient.cpu()[finite], expected_gradient.float()[finite])


SAMPLES = {
    "pyramid_concat": functools.partial(draw_concat, channels=2, level_channels=3),
    "upsample_add": draw_add,
    "pyramid_conv-1x1": functools.partial(draw_conv, kernel=(1, 1), channels=2, outputs=5, biased=False),
    "pyramid_conv-3x3": functools.partial(draw_conv, kernel=(3, 3), channels=2, outputs=5, biased=False),
}
# What does not take long in Triton's interpreter.
INTERPRETED_CASES = [
    *itertools.product(["pyramid_concat"], ["nchw", "channels_last"], PYRAMIDS),
    *itertools.product(["upsample_add"], ["nchw", "channels_last"], ["equal_rows", "any"]),
    *itertools.product(["pyramid_conv-1x1"], ["nchw"], ["any", "wide"]),
    *itertools.product(["pyramid_conv-3x3"], ["channels_last"], ["equal", "equal_rows", "equal_columns", "single"]),
]


@each_value
@each_corners
@pytest.mark.parametrize("pyramid", PYRAMIDS)
@each_layout
@pytest.mark.parametrize("operator", SAMPLES)
def test_pyramids(
    backend: Backend, operator: str, layout: str, pyramid: str, align_corners: bool, value: float
) -> None:
    """``value`` at an input of the levels, and at an upstream gradient, spreads as in the definition in float64.

    Results are compared number by number. Of a gradient the finite numbers are, and which numbers are not finite:
    whether a sum of several infinite terms is infinite or NaN depends on its order.
    """
    if INTERPRETED and (operator, layout, pyramid) not in INTERPRETED_CASES:
        pytest.skip("takes long in Triton's interpreter")
    size, bins = PYRAMIDS[pyramid]
    fused, definition, inputs = SAMPLES[operator](size, bins, align_corners=align_corners, layout=layout, batch=1)
    maps, parameters = [t.repeat(PLACES, *[1] * (t.dim() - 1)) for t in inputs[:2]], inputs[2:]
    special = [t.clone() for t in maps]
    replace(special[0 if operator == "upsample_add" else 1][:, 1], value)

    def on_device(*tensors: Tensor) -> Tensor:
        return fused(*tensors, *(t.to(backend.device) for t in parameters))

    def exactly(*tensors: Tensor) -> Tensor:
        return definition(*tensors, *(t.double() for t in parameters))

    def placed(tensors: list[Tensor]) -> list[Tensor]:
        return [LAYOUTS[layout](t.to(backend.device)) if t.dim() == 4 else t.to(backend.device) for t in tensors]

    expected = exactly(*(t.double() for t in special))
    actual = on_device(*placed(special))
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-4, atol=1e-5, equal_nan=True)

    upstream = random(*expected.shape)
    replace(upstream[:, -2].flatten(1), value)
    _, gradients = differentiate(on_device, placed(maps), placed([upstream]))
    _, exact = differentiate(exactly, [t.double() for t in maps], [upstream])
    for a, e in zip((g.cpu() for g in gradients), exact, strict=True):
        torch.testing.assert_close(a.isfinite(), e.isfinite())
        torch.testing.assert_close(a.double()[e.isfinite()], e[e.isfinite()], rtol=1e-4, atol=1e-5)


def replace(rows: Tensor, value: float) -> None:
    """Puts ``value`` into every row ``[PLACES, n]``, in each at another place."""
    for row, numbers in enumerate(rows):
        numbers[row * (numbers.numel() - 1) // (PLACES - 1)] = value
