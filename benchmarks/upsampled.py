"""Cases of a map and upsampled levels beside it: their sum, and a convolution over all of them.

SegFormer's head has the sum behind its 1x1 convolutions; UPerNet fuses the levels of its neck by the convolution.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from benchmarks.case import Call, Case, Floor, Place, dimensions
from benchmarks.peers import COMPILE, EAGER, OURS, our_peers, peer_call
from benchmarks.pyramid import TOLERANCE, Shape

FACTORS = (2, 4, 8)  # the levels' strides over the map's
KERNEL = 3


def maps_of(shape: Shape, place: Place) -> list[Tensor]:
    """A base [batch, channels, height, width], and levels of a half, a quarter and an eighth of its sides."""
    batch, channels, height, width = shape
    sizes = [(height // factor, width // factor) for factor in (1, *FACTORS)]
    return [place.normal(batch, channels, *size, seed=seed) for seed, size in enumerate(sizes)]


def level_sizes(shape: Shape) -> list[tuple[int, int]]:
    return [(shape[2] // factor, shape[3] // factor) for factor in FACTORS]


def title(shape: Shape) -> str:
    return f"{' + '.join(dimensions(*size) for size in level_sizes(shape))} -> {dimensions(*shape)}"


def packed(levels: tuple[Tensor, ...]) -> tuple[Tensor, list[tuple[int, int]]]:
    """The levels as this package's operators take them, and their sizes."""
    bins = [(level.shape[2], level.shape[3]) for level in levels]
    return torch.cat([level.flatten(2) for level in levels], dim=2), bins


# ---- the sum ---------------------------------------------------------------------------------------------------------


def stock_sum(base: Tensor, *levels: Tensor) -> Tensor:
    for level in levels:  # upsampled one by one, as a model has it
        base = base + F.interpolate(level, base.shape[2:], mode="bilinear", align_corners=False)
    return base


def fused_sum(base: Tensor, *levels: Tensor) -> Tensor:
    cells, bins = packed(levels)
    return pspnet_fast.upsample_add(cells, base, bins=bins, align_corners=False)


def build_sum(shape: Shape, place: Place, peer: str) -> Call:
    """The sum, and the gradients of the base and of every level."""
    leaves = [tensor.requires_grad_() for tensor in maps_of(shape, place)]
    return peer_call(peer, stock_sum, fused_sum, leaves, place.normal(*shape, seed=len(leaves)))


def sum_case(shape: Shape, place: Place) -> Case:
    """The sum of levels and a base of ``shape``, with all gradients."""
    batch, channels, height, width = shape
    elements = batch * channels * height * width
    nodes = batch * channels * sum(h * w for h, w in level_sizes(shape))
    return Case(
        operator="upsample_add",
        labels=place.labels(title(shape)),
        device=place.device,
        peers=(EAGER, COMPILE, *our_peers(["upsample_add"], place.device)),
        build=functools.partial(build_sum, shape, place),
        # The base is read and the result is written; the result's gradient, which is also the base's, is read.
        # Interpolating a level's rows takes a multiply-add for each element of the result, each way.
        floor=Floor(bytes=(3 * elements + 2 * nodes) * place.dtype.itemsize, flops=2 * 2 * len(FACTORS) * elements),
        tolerance=TOLERANCE[place.dtype],
    )


# ---- the convolution -------------------------------------------------------------------------------------------------


def stock_conv(weight: Tensor, base: Tensor, *levels: Tensor) -> Tensor:
    ups = [F.interpolate(level, base.shape[2:], mode="bilinear", align_corners=False) for level in levels]
    return F.conv2d(torch.cat([base, *ups], dim=1), weight, padding=KERNEL // 2)


def fused_conv(weight: Tensor, base: Tensor, *levels: Tensor) -> Tensor:
    cells, bins = packed(levels)
    return pspnet_fast.pyramid_conv(base, cells, weight, bins=bins, align_corners=False)


def build_conv(shape: Shape, place: Place, backward: bool, peer: str) -> Call:
    """The convolution, and with ``backward`` the gradients of the weight, the base and every level."""
    maps = maps_of(shape, place)
    inputs = len(maps) * shape[1]
    # Scaled as in a network, so that results are about 1.
    weight = place.normal(shape[1], inputs, KERNEL, KERNEL, seed=len(maps)) / (inputs * KERNEL**2) ** 0.5
    leaves = [tensor.requires_grad_(backward) for tensor in (weight, *maps)]
    upstream = place.normal(*shape, seed=len(leaves)) if backward else None
    return peer_call(peer, stock_conv, fused_conv, leaves, upstream)


def conv_case(shape: Shape, place: Place, *, backward: bool) -> Case:
    """A convolution of levels and a base of ``shape`` to as many channels; on a CPU on one thread, by its own time."""
    batch, channels, height, width = shape
    pixels, cells = batch * height * width, batch * sum(h * w for h, w in level_sizes(shape))
    # The base's and every level's own products; a pixel reads two columns of every level at each tap.
    products = KERNEL**2 * channels**2 * (pixels + cells) + 2 * KERNEL * len(FACTORS) * channels * pixels
    weight = KERNEL**2 * channels**2 * (1 + len(FACTORS))
    # Results; gradients of inputs; of weights. Backward reads the result's gradient, the maps and the weight, and
    # writes the gradients of these.
    passes = 3 if backward else 1
    elements = channels * (2 * pixels + cells) + weight
    on_cpu = place.device == "cpu"
    return Case(
        operator="pyramid_conv",
        labels=place.labels(title(shape), backward=backward),
        device=place.device,
        # On a GPU "auto" leaves such levels to cuDNN, whatever kernels there are.
        peers=(EAGER, COMPILE, *(our_peers(["pyramid_conv"], place.device) if on_cpu else (OURS,))),
        build=functools.partial(build_conv, shape, place, backward),
        floor=Floor(passes * elements * place.dtype.itemsize, passes * 2 * products, place.dtype_name),
        # A GPU's convolutions take float32 as TF32, whose numbers have 11 bits.
        tolerance=TOLERANCE[place.dtype] if on_cpu else {torch.float32: 2e-3, torch.bfloat16: 5e-2}[place.dtype],
        threads=1 if on_cpu else None,
        processor_time=on_cpu,
    )
