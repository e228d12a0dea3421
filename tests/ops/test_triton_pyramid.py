"""The Triton functions behind the pyramid's operators, called directly: tiles and blocks that the operators' own tests,
which are small, do not reach, and what only other operators call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from exactness import assert_as_exact_as_stock
from running import INTERPRETED, home, random
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

from pspnet_fast import reference
from pspnet_fast.ops.pyramid_conv_composed import convolve_x, weight_parts
from pspnet_fast.reference import Bin, NormStatistics, level_sizes
from pspnet_fast.triton import pyramid_conv
from pspnet_fast.triton.pyramid_concat import pyramid_concat_backward, pyramid_concat_forward
from pspnet_fast.triton.pyramid_pool import pyramid_pool_backward, pyramid_pool_backward_add

DEVICE = home("triton")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="without a GPU, kernels run with TRITON_INTERPRET=1 only"
)
# The interpreter is not reliable in bfloat16.
DTYPES = [torch.float32, torch.float64, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("shape", "bins"), [((2, 3, 7, 20), (1, 2, 3, 6)), ((1, 130, 2, 5), (3, 1))], ids=str)
def test_pool_gradient_is_added(shape: Sequence[int], bins: Sequence[int], layout: str, dtype: torch.dtype) -> None:
    grad_x = random(*shape, dtype=dtype, device=DEVICE, layout=layout)
    grad = random(*shape[:2], sum(k * k for k in bins), dtype=dtype, device=DEVICE)
    x = torch.zeros(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    (spread,) = torch.autograd.grad(reference.pyramid_pool(x, bins), x, grad.double())
    exact, stock = grad_x.double() + spread, grad_x + spread.to(dtype)

    address, strides = grad_x.data_ptr(), grad_x.stride()
    pyramid_pool_backward_add(grad_x, grad, bins)
    assert (grad_x.data_ptr(), grad_x.stride()) == (address, strides)
    assert_as_exact_as_stock(grad_x, stock, exact, dtype)


def test_pool_gradient_added_to_nothing_is_the_gradient() -> None:
    grad_x, grad = torch.zeros(2, 3, 8, 9, device=DEVICE), random(2, 3, 14, device=DEVICE)
    pyramid_pool_backward_add(grad_x, grad, (1, 2, 3))
    expected = pyramid_pool_backward(grad, 8, 9, (1, 2, 3), channels_last=False)
    torch.testing.assert_close(grad_x, expected, rtol=0, atol=0)


def stock_concat(
    x: Tensor, levels: Tensor, grad: Tensor, bins: Sequence[int], align_corners: bool, x_first: bool
) -> tuple[Tensor, Tensor]:
    """The concatenated map in stock operators, and its gradient by the levels."""
    leaf = levels.detach().requires_grad_()
    y = reference.pyramid_concat(x, leaf, bins=bins, align_corners=align_corners, x_first=x_first)
    return y.detach(), torch.autograd.grad(y, leaf, grad.to(y.dtype))[0]


# Several blocks of channels, of columns and of lines; channels that fill no block; more cells than a matrix tile has.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("size", "channels", "level_channels", "bins"),
    [((3, 141), 1, 2, (2, 1)), ((2, 5), 131, 129, (1,)), ((18, 5), 1, 17, (17, 3))],
    ids=["columns", "channels", "cells"],
)
def test_concat_in_blocks(
    size: tuple[int, int], channels: int, level_channels: int, bins: Sequence[int], layout: str
) -> None:
    options = bins, False, False
    x = random(1, channels, *size, device=DEVICE, layout=layout)
    levels = random(1, level_channels, sum(k * k for k in bins), device=DEVICE)
    grad = random(1, channels + len(bins) * level_channels, *size, device=DEVICE, layout=layout)
    stock, exact = stock_concat(x, levels, grad, *options), stock_concat(x.double(), levels.double(), grad, *options)
    y = pyramid_concat_forward(x, levels, *options)
    grad_levels = pyramid_concat_backward(grad, channels, *options)
    assert_as_exact_as_stock(y, stock[0], exact[0], x.dtype)
    assert_as_exact_as_stock(grad_levels, stock[1], exact[1], x.dtype)


def conv_inputs(
    size: tuple[int, int], level_channels: int, outputs: int, bins: Sequence[Bin], kernel: tuple[int, int],
    layout: str = "nchw", batch: int = 1, dtype: torch.dtype = torch.float32,
) -> list[Tensor]:  # fmt: skip
    """x of 2 channels, levels, and a weight scaled as an initialised layer's would be."""
    channels = 2 + len(bins) * level_channels
    x = random(batch, 2, *size, layout=layout, dtype=dtype, device=DEVICE)
    levels = random(batch, level_channels, sum(h * w for h, w in level_sizes(bins)), dtype=dtype, device=DEVICE)
    weight = random(outputs, channels, *kernel, layout=layout, dtype=dtype, device=DEVICE)
    return [x, levels, weight / (channels * kernel[0] * kernel[1]) ** 0.5]


def flat(bins: Sequence[Bin]) -> list[int]:
    """h and w of each level, as the functions take them."""
    return [n for size in level_sizes(bins) for n in size]


def add(y: Tensor, levels: Tensor, weight: Tensor, bins: Sequence[Bin], *options: Any) -> Tensor:
    """``pyramid_conv_add``, which must leave y where it lies."""
    address, strides = y.data_ptr(), y.stride()
    pyramid_conv.pyramid_conv_add(y, levels, weight, flat(bins), *options)
    assert (y.data_ptr(), y.stride()) == (address, strides)
    return y


# Sizes behind what a tile holds: columns and rows of the output, its channels, channels of a level, cells, taps.
BLOCKS = {
    "columns": ((3, 70), 2, 3, (2, 1), (3, 3)),
    "rows": ((37, 2), 2, 3, (3, 1), (3, 1)),
    "outputs": ((3, 4), 3, 67, (2,), (1, 3)),
    "channels": ((4, 3), 66, 2, (1, 2), (1, 1)),
    "cells": ((5, 6), 2, 3, (9, 23), (3, 1)),
    "taps": ((6, 5), 2, 2, (7, 1, 7), (5, 5)),
    "wide levels": ((3, 40), 2, 3, ((2, 23), (1, 9)), (3, 3)),
    "high levels": ((24, 5), 2, 3, ((25, 2), (9, 4)), (3, 3)),
}


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", BLOCKS)
def test_conv_in_blocks(case: str, layout: str) -> None:
    size, level_channels, outputs, bins, kernel = BLOCKS[case]
    x, levels, weight = conv_inputs(size, level_channels, outputs, bins, kernel, layout)
    grad = random(1, outputs, *size, layout=layout, device=DEVICE)
    options = bins, False, False

    def stock(x: Tensor, levels: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        leaves = levels.detach().requires_grad_(), weight.detach().requires_grad_()
        y = reference.pyramid_conv(x, *leaves, bins=bins, align_corners=False, x_first=False)
        grad_levels, grad_weight = torch.autograd.grad(y, leaves, grad.to(y.dtype))
        return y.detach(), grad_levels, grad_weight[:, : len(bins) * level_channels]

    part = weight_parts(x, levels, len(bins), False).x
    y = add(convolve_x(x, weight, None, part), levels, weight, *options)
    grad_levels, grad_weight = torch.empty_like(levels), torch.full_like(weight, 7)
    pyramid_conv.pyramid_conv_levels_backward(grad, levels, weight, flat(bins), False, False, grad_levels, grad_weight)
    assert grad_weight[:, part].eq(7).all()  # x's part is others'
    actual = y, grad_levels, grad_weight[:, : len(bins) * level_channels]
    exact = stock(x.double(), levels.double(), weight.double())
    for a, s, e in zip(actual, stock(x, levels, weight), exact, strict=True):
        assert_as_exact_as_stock(a, s, e, x.dtype)


def test_conv_gradients_of_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose sums do not fit the cache gives the same bits."""
    _, levels, weight = conv_inputs((5, 6), 2, 3, (1, 2), (3, 3), batch=3)
    grad = random(3, 3, 5, 6, device=DEVICE)

    def gradients() -> list[Tensor]:
        written = [torch.empty_like(levels), torch.zeros_like(weight)]
        pyramid_conv.pyramid_conv_levels_backward(grad, levels, weight, flat((1, 2)), True, True, *written)
        return written

    together = gradients()
    two_images = 2 * 5 * (3 * 1 + 3 * 2) * 3 * 4  # rows, taps, outputs, bytes
    monkeypatch.setattr(pyramid_conv, "R_BYTES", two_images)
    torch.testing.assert_close(gradients(), together, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_conv_of_some_outputs_at_a_time(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels whose products are too many at once give the same, but for the order of the sum over outputs."""
    bins, outputs = ((2, 3), 1), 70
    _, levels, weight = conv_inputs((3, 6), 3, outputs, bins, (3, 3), dtype=dtype)
    grad, zeros = (f(1, outputs, 3, 6, dtype=dtype, device=DEVICE) for f in (random, torch.zeros))
    ones = torch.ones(outputs, device=DEVICE)
    norm = NormStatistics(*(ones * torch.arange(n, n + outputs, device=DEVICE) for n in (1, 2, 3, 4)), 1e-5)

    def results() -> list[Tensor]:
        written = [torch.empty_like(levels), torch.zeros_like(weight)]
        pyramid_conv.pyramid_conv_levels_backward(grad, levels, weight, flat(bins), True, True, *written)
        return [add(zeros.clone(), levels, weight, bins, True, True, n) for n in (None, norm)] + written

    together = results()
    assert torch.stack([t.float().abs().amax() for t in together]).min() > 0
    monkeypatch.setattr(pyramid_conv, "Q_BYTES", 1)
    *equal, grad_levels, grad_weight = results()
    torch.testing.assert_close([*equal, grad_weight], [*together[:2], together[3]], rtol=0, atol=0)
    torch.testing.assert_close(grad_levels, together[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_conv_norm_relu(layout: str, dtype: torch.dtype) -> None:
    bins = (1, 2)
    tensors = conv_inputs((5, 7), 3, 17, bins, (3, 3), layout, dtype=dtype)
    # Under autocast the statistics stay in float32.
    mean, var, gamma, beta = (
        random(17, dtype=dtype, device=DEVICE).to(torch.promote_types(dtype, torch.float32)) for _ in range(4)
    )
    norm = NormStatistics(mean, var.square(), gamma, beta, 1e-5)

    def definition(*tensors: Tensor) -> Tensor:
        statistics = norm._replace(**{f: t.to(tensors[0].dtype) for f, t in zip(norm._fields, norm[:4], strict=False)})
        return reference.pyramid_conv_norm_relu(*tensors, statistics, bins=bins)

    x, levels, weight = tensors
    y = convolve_x(x, weight, None, weight_parts(x, levels, 2, True).x)
    y = add(y, levels, weight, bins, True, True, norm)
    assert_as_exact_as_stock(y, definition(*tensors), definition(*(t.double() for t in tensors)), dtype)
    assert y.eq(0).any()


def test_norm_relu_keeps_nan() -> None:
    _, levels, weight = conv_inputs((3, 4), 2, 2, (1, 2), (1, 1))
    y = torch.tensor([torch.nan, 1.0], device=DEVICE).view(1, 2, 1, 1).expand(1, 2, 3, 4).contiguous()
    ones = torch.ones(2, device=DEVICE)
    add(y, levels, weight, (1, 2), True, True, NormStatistics(ones, ones, ones, ones, 1e-5))
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()
