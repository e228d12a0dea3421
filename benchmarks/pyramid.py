"""Cases of the pyramid: pooling alone, and the head from pooling to the ReLU behind the 3x3 convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspnet_fast
from benchmarks.case import (
    COMPILE,
    EAGER,
    LAYOUTS,
    Call,
    Case,
    Results,
    as_training,
    backend_of,
    compiled,
    differentiated,
    dimensions,
    dtype_name,
    is_ours,
    normal,
    our_peers,
)
from benchmarks.ceilings import Floor
from pspnet_fast import reference
from pspnet_fast.nn import PyramidPooling
from tests.plain_pspnet import PlainPyramid

BINS = (1, 2, 3, 6)
CELLS = sum(k * k for k in BINS)
PLAIN_READ, X_ALONE = "x.sum()", "convolution of x alone"
# Of gradients behind a ReLU: where a value rounds to the other side of zero, its gradient comes or goes as a whole.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1e-1}


def cases(device: str, *, quick: bool) -> list[Case]:
    """The pyramid's cases for a device."""
    if quick:
        shape = (2, 64, 13, 17)
        return [
            pool(shape, "NCHW", device),
            pool(shape, "NCHW", device, backward=True),
            head((2, 64, 12, 12), "channels_last", device),
        ]
    square, city = (2, 2048, 60, 60), (2, 2048, 64, 128)
    if device == "cpu":
        pools = [
            pool(shape, layout, device, backward=backward)
            for shape in (square, city)
            for layout in LAYOUTS
            for backward in (False, True)
        ]
        heads = [head(square, layout, device) for layout in LAYOUTS]
        return [*pools, *heads, head(square, "channels_last", device, dtype=torch.bfloat16)]
    large = (16, 2048, 60, 60)
    return [
        *(pool(large, "channels_last", device, dtype=torch.bfloat16, backward=backward) for backward in (False, True)),
        *(pool(large, "NCHW", device, backward=backward) for backward in (False, True)),
        head(large, "channels_last", device, dtype=torch.bfloat16),
    ]


def pool(
    shape: tuple[int, int, int, int],
    layout: str,
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
) -> Case:
    """Pooling to every level of ``x``, and with ``backward`` the gradient of x too."""

    def build(peer: str) -> Call:
        x = normal(*shape, device=device, dtype=dtype, layout=layout).requires_grad_(backward)
        upstream = normal(*shape[:2], CELLS, device=device, dtype=dtype, seed=1)
        stock = compiled(reference.pyramid_pool, peer)

        def pooled() -> Tensor:
            if not is_ours(peer):
                return stock(x, BINS)
            with backend_of(peer):
                return pspnet_fast.pyramid_pool(x, BINS)

        if peer == PLAIN_READ:
            return lambda: (x.sum(),)
        return (lambda: differentiated(pooled, [x], upstream)) if backward else (lambda: (pooled(),))

    size = shape[0] * shape[1] * shape[2] * shape[3]
    passes = 2 if backward else 1  # one read of x; one write of its gradient
    return Case(
        operator="pyramid_pool",
        labels={
            "shape": dimensions(*shape),
            "dtype": dtype_name(dtype),
            "layout": layout,
            "direction": "forward + backward" if backward else "forward",
        },
        device=device,
        peers=(EAGER, COMPILE, *our_peers(["pyramid_pool"], device)),
        build=build,
        floor=Floor(bytes=passes * (size + shape[0] * shape[1] * CELLS) * dtype.itemsize, flops=2 * passes * size),
        tolerance=1e-5 if dtype == torch.float32 else 2e-2,
        parts=() if backward else (PLAIN_READ,),
        page_faults=backward,
    )


class StockHead(nn.Module):
    """Pyramid, concatenation, 3x3 convolution, batch normalisation, ReLU in stock operators."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 4
        self.ppm = PlainPyramid(channels, width, BINS)
        self.conv = nn.Conv2d(2 * channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.ppm(x))))


class FusedHead(StockHead):
    """The same on this package's operators."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.ppm = PyramidPooling(channels, channels // 4, BINS)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x, levels = self.ppm.forward_levels(x)  # type: ignore[operator]
        return F.relu(self.bn(pspnet_fast.pyramid_conv(x, levels, self.conv.weight, bins=BINS)))


def convolution_alone(channels: int) -> nn.Module:
    """What no arrangement can avoid: the convolution over x, with its normalisation and ReLU."""
    width = channels // 4
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def levels_together(results: Results) -> Results:
    """The gradients of the levels' twelve parameters as one, to be compared by.

    Over a batch of two the 1x1 level's normalisation answers ±1 whatever it is given, so that nothing but rounding is
    left of its weight's gradient.
    """
    y, x, *parameters = results
    levels, rest = parameters[: 3 * len(BINS)], parameters[3 * len(BINS) :]
    return y, x, torch.cat([gradient.flatten() for gradient in levels]), *rest


def head(shape: tuple[int, int, int, int], layout: str, device: str, *, dtype: torch.dtype = torch.float32) -> Case:
    """The head's training step on ``x``: results, and gradients of x and of every parameter."""
    batch, channels, height, width = shape
    out = channels // 4

    def build(peer: str) -> Call:
        torch.manual_seed(0)
        net: nn.Module = StockHead(channels)
        if is_ours(peer):
            weights = net.state_dict()
            net = FusedHead(channels)
            net.load_state_dict(weights)
        elif peer == X_ALONE:
            net = convolution_alone(channels)
        net = net.to(device, memory_format=LAYOUTS[layout]).train()  # type: ignore[call-overload]
        call = compiled(net, peer)
        x = normal(*shape, device=device, layout=layout)
        # Under autocast the backbone's map comes in the half precision.
        x = x.to(dtype).requires_grad_()
        upstream = normal(batch, out, height, width, device=device, dtype=dtype, layout=layout, seed=1)
        leaves = [x, *net.parameters()]

        def step() -> Results:
            with as_training(device, dtype), backend_of(peer):
                return differentiated(lambda: call(x), leaves, upstream)

        return step

    pixels = batch * height * width
    # For each of forward, gradient of the inputs, gradient of the weights: x, then levels, products, interpolation.
    products = 9 * channels * out * pixels
    products += batch * CELLS * out * (channels + 9 * out) + 3 * sum(BINS) * out * pixels
    return Case(
        operator="psp_head",
        labels={
            "shape": dimensions(*shape),
            "dtype": dtype_name(dtype),
            "layout": layout,
            "direction": "forward + backward",
        },
        device=device,
        peers=(EAGER, COMPILE, *our_peers(["pyramid_pool", "pyramid_conv"], device)),
        build=build,
        floor=Floor(
            bytes=(3 * channels + 2 * out) * pixels * dtype.itemsize + 3 * 4 * 9 * 2 * channels * out,
            flops=3 * 2 * products,
            rate=dtype_name(dtype),
        ),
        tolerance=TOLERANCE[dtype],
        compared=levels_together,
        parts=(X_ALONE,),
        page_faults=True,
    )
