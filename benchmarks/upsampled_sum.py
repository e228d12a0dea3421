"""Cases of the sum of upsampled maps, as heads over several resolutions have it behind their 1x1 convolutions."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from benchmarks.case import Call, Case, Floor, Place, Results, differentiated, dimensions
from benchmarks.peers import COMPILE, EAGER, backend_of, compiled, is_ours, our_peers
from benchmarks.pyramid import TOLERANCE, Shape

FACTORS = (2, 4, 8)  # the levels' strides over the result's, as in SegFormer's head


def stock_sum(base: Tensor, *levels: Tensor) -> Tensor:
    """Upsample every level, then add them one after the other."""
    for level in levels:
        base = base + F.interpolate(level, base.shape[2:], mode="bilinear", align_corners=False)
    return base


def fused_sum(base: Tensor, *levels: Tensor) -> Tensor:
    """The same by this package's operator, packing of the levels included."""
    packed = torch.cat([level.flatten(2) for level in levels], dim=2)
    bins = [tuple(level.shape[2:]) for level in levels]
    return pspnet_fast.upsample_add(packed, base, bins=bins, align_corners=False)


def build(shape: Shape, place: Place, peer: str) -> Call:
    """The sum, and the gradients of the base and of every level."""
    batch, channels, height, width = shape
    sizes = [(height // factor, width // factor) for factor in (1, *FACTORS)]
    leaves = [place.normal(batch, channels, *size, seed=i).requires_grad_() for i, size in enumerate(sizes)]
    upstream = place.normal(*shape, seed=len(sizes))
    function = fused_sum if is_ours(peer) else compiled(stock_sum, peer)

    def step() -> Results:
        with backend_of(peer):
            return differentiated(lambda: function(*leaves), leaves, upstream)

    return step


def case(shape: Shape, place: Place) -> Case:
    """``base`` [batch, channels, height, width] and levels of a half, a quarter and an eighth of its sides."""
    batch, channels, height, width = shape
    elements = batch * channels * height * width
    sizes = [(height // factor, width // factor) for factor in FACTORS]
    nodes = batch * channels * sum(h * w for h, w in sizes)
    return Case(
        operator="upsample_add",
        labels=place.labels(f"{' + '.join(dimensions(*size) for size in sizes)} -> {dimensions(*shape)}"),
        device=place.device,
        peers=(EAGER, COMPILE, *our_peers(["upsample_add"], place.device)),
        build=functools.partial(build, shape, place),
        # The base is read and the result is written; the result's gradient, which is also the base's, is read.
        # Interpolating a level's rows takes a multiply-add for each element of the result, each way.
        floor=Floor(bytes=(3 * elements + 2 * nodes) * place.dtype.itemsize, flops=2 * 2 * len(FACTORS) * elements),
        tolerance=TOLERANCE[place.dtype],
    )
