"""Cases of a convolution over a map and upsampled levels of it, as UPerNet fuses the levels of its neck."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from benchmarks.case import Call, Case, Floor, Place, Results, differentiated, dimensions
from benchmarks.peers import COMPILE, EAGER, OURS, backend_of, compiled, is_ours, our_peers
from benchmarks.pyramid import TOLERANCE, Shape
from benchmarks.upsampled_sum import FACTORS

KERNEL = 3


def stock_conv(weight: Tensor, base: Tensor, *levels: Tensor) -> Tensor:
    """Upsample every level, concatenate, convolve."""
    ups = [F.interpolate(level, base.shape[2:], mode="bilinear", align_corners=False) for level in levels]
    return F.conv2d(torch.cat([base, *ups], dim=1), weight, padding=KERNEL // 2)


def fused_conv(weight: Tensor, base: Tensor, *levels: Tensor) -> Tensor:
    """The same by this package's operator, packing of the levels included."""
    packed = torch.cat([level.flatten(2) for level in levels], dim=2)
    bins = [(level.shape[2], level.shape[3]) for level in levels]
    return pspnet_fast.pyramid_conv(base, packed, weight, bins=bins, align_corners=False)


def build(shape: Shape, place: Place, backward: bool, peer: str) -> Call:
    """The convolution, and with ``backward`` the gradients of the weight, the base and every level."""
    batch, channels, height, width = shape
    sizes = [(height // factor, width // factor) for factor in (1, *FACTORS)]
    maps = [place.normal(batch, channels, *size, seed=i) for i, size in enumerate(sizes)]
    inputs = len(sizes) * channels
    # Scaled as in a network, so that results are about 1.
    weight = place.normal(channels, inputs, KERNEL, KERNEL, seed=len(sizes)) / (inputs * KERNEL**2) ** 0.5
    leaves = [tensor.requires_grad_(backward) for tensor in (weight, *maps)]
    upstream = place.normal(*shape, seed=len(sizes) + 1)
    function = fused_conv if is_ours(peer) else compiled(stock_conv, peer)

    def step() -> Results:
        with backend_of(peer):
            return differentiated(lambda: function(*leaves), leaves, upstream) if backward else (function(*leaves),)

    return step


def case(shape: Shape, place: Place, *, backward: bool) -> Case:
    """A base [batch, channels, height, width], levels of a half, a quarter and an eighth of its sides, as many outputs.

    On a CPU on one thread, by the time of the processor.
    """
    batch, channels, height, width = shape
    pixels = batch * height * width
    sizes = [(height // factor, width // factor) for factor in FACTORS]
    cells = batch * sum(h * w for h, w in sizes)
    # The base's and every level's own products; a pixel reads two columns of every level at each tap.
    products = KERNEL**2 * channels**2 * (pixels + cells) + 2 * KERNEL * len(FACTORS) * channels * pixels
    weight = KERNEL**2 * channels**2 * (1 + len(FACTORS))
    passes = 3 if backward else 1  # results; gradients of inputs, of weights
    elements = channels * (2 * pixels + cells) + weight
    on_cpu = place.device == "cpu"
    return Case(
        operator="pyramid_conv",
        labels=place.labels(
            f"{' + '.join(dimensions(*size) for size in sizes)} -> {dimensions(*shape)}",
            "forward + backward" if backward else "forward",
        ),
        device=place.device,
        # On a GPU "auto" leaves such levels to cuDNN, whatever kernels there are.
        peers=(EAGER, COMPILE, *(our_peers(["pyramid_conv"], place.device) if on_cpu else (OURS,))),
        build=functools.partial(build, shape, place, backward),
        # Backward reads the result's gradient, the maps and the weight, and writes the gradients of these.
        floor=Floor(
            bytes=(3 if backward else 1) * elements * place.dtype.itemsize,
            flops=passes * 2 * products,
            rate=place.dtype_name,
        ),
        # A GPU's convolutions take float32 as TF32, whose numbers have 11 bits.
        tolerance=TOLERANCE[place.dtype] if on_cpu else {torch.float32: 2e-3, torch.bfloat16: 5e-2}[place.dtype],
        threads=1 if on_cpu else None,
        processor_time=on_cpu,
    )


def cases(shapes: Iterable[Shape], places: Iterable[Place]) -> Iterator[Case]:
    """Every shape of a base in every place, forward and with backward."""
    for shape, place, backward in product(shapes, places, (False, True)):
        yield case(shape, place, backward=backward)
