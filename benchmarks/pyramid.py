"""Cases of the pyramid: its operators alone, and the head from pooling to the ReLU behind its convolution.

Code that does not build the concatenation must still give the function of the project that does: the order of its
channels, its upsampling, its kernel, and what is normalised.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspnet_fast
from benchmarks.case import LAYOUTS, Call, Case, Floor, Place, Results, Shape, differentiated, dimensions
from benchmarks.peers import MMSEG, PLAIN_READ, SEMSEG, SMP, backend_of, compiled, is_ours, operator_case, peers_of
from pspnet_fast import reference

BINS = (1, 2, 3, 6)
CELLS = sum(k * k for k in BINS)
X_ALONE = "convolution of x alone"
# Behind a ReLU: where a value rounds to the other side of zero, its gradient comes or goes as a whole.
HEAD_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1e-1}
POOL_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class HeadArrangement:
    """A project's head.

    Attributes:
        align_corners: of the levels' upsampling.
        x_first: whether the map comes before its levels in the concatenation.
        kernel: side of the convolution behind it.
        narrowed: how many times narrower the map is than the backbone's last one.
        normalised_1x1: whether the 1x1 level has batch normalisation; a bias where not.
    """

    align_corners: bool = True
    x_first: bool = True
    kernel: int = 3
    narrowed: int = 1
    normalised_1x1: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Of the operators."""
        return {"bins": BINS, "align_corners": self.align_corners, "x_first": self.x_first}


ARRANGEMENTS = {
    SEMSEG: HeadArrangement(),
    MMSEG: HeadArrangement(align_corners=False),
    SMP: HeadArrangement(x_first=False, kernel=1, narrowed=4, normalised_1x1=False),
}


# ---- pooling ---------------------------------------------------------------------------------------------------------


def pool(shape: Shape, place: Place, *, backward: bool = True) -> Case:
    """Pooling to every level: the same function in every project."""
    size, cells = math.prod(shape), shape[0] * shape[1] * CELLS
    passes = 2 if backward else 1  # one read of x; one write of its gradient
    return operator_case(
        "pyramid_pool",
        place,
        (reference.pyramid_pool, pspnet_fast.pyramid_pool),
        [shape],
        result=(*shape[:2], CELLS) if backward else None,
        floor=Floor(bytes=passes * (size + cells) * place.dtype.itemsize, flops=2 * passes * size),
        tolerance=POOL_TOLERANCE[place.dtype],
        parts=() if backward else (PLAIN_READ,),
        page_faults=backward,
    )


# ---- concatenation, and the convolution of it ------------------------------------------------------------------------


def merging(operator: str, shape: Shape, place: Place, project: str) -> Case:
    """``pyramid_concat``, or ``pyramid_conv`` of the same concatenation, as a project arranges it."""
    (batch, channels, *size), arrangement = shape, ARRANGEMENTS[project]
    if operator == "pyramid_conv":
        out, weight = channels // 4, (channels // 4, 2 * channels, arrangement.kernel, arrangement.kernel)
        floor = head_floor(shape, out, arrangement.kernel, place, with_levels=False)
    else:
        out, weight = 2 * channels, None
        # The result and its gradient have twice the channels; interpolating takes a multiply-add an element, each way.
        elements = math.prod(shape)
        floor = Floor(bytes=6 * elements * place.dtype.itemsize, flops=2 * 2 * elements)
    stock, fused = (functools.partial(getattr(at, operator), **arrangement.options) for at in (reference, pspnet_fast))
    return operator_case(
        operator,
        place,
        (stock, fused),
        [shape, (batch, channels // len(BINS), CELLS)],
        weight=weight,
        result=(batch, out, *size),
        floor=floor,
        tolerance=TOLERANCE[place.dtype],
    )


# ---- the head --------------------------------------------------------------------------------------------------------


class StockHead(nn.Module):
    """A project's head in stock operators: pool, convolve, upsample each level; concatenate; convolve."""

    def __init__(self, channels: int, out_channels: int, arrangement: HeadArrangement) -> None:
        super().__init__()
        self.arrangement = arrangement
        width = channels // len(BINS)
        self.levels = nn.ModuleList()
        for k in BINS:
            normalised = k != 1 or arrangement.normalised_1x1
            layers = [nn.AdaptiveAvgPool2d(k), nn.Conv2d(channels, width, 1, bias=not normalised)]
            layers += [nn.BatchNorm2d(width)] if normalised else []
            self.levels.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
        kernel = arrangement.kernel
        self.conv = nn.Conv2d(2 * channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        ups = [
            F.interpolate(level(x), x.shape[-2:], mode="bilinear", align_corners=self.arrangement.align_corners)
            for level in self.levels
        ]
        merged = torch.cat([x, *ups] if self.arrangement.x_first else [*ups, x], dim=1)
        return F.relu(self.bn(self.conv(merged)))


class FusedHead(StockHead):
    """The same on this package's operators."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = pspnet_fast.pyramid_pool(x, BINS).split([k * k for k in BINS], dim=2)
        levels = [
            level[1:](cells.unflatten(2, (k, k))).flatten(2)
            for level, cells, k in zip(self.levels, pooled, BINS, strict=True)
        ]
        y = pspnet_fast.pyramid_conv(x, torch.cat(levels, dim=2), self.conv.weight, **self.arrangement.options)
        return F.relu(self.bn(y))


def smp_head(channels: int, out_channels: int, weights: dict[str, Tensor]) -> nn.Module:
    """The decoder of segmentation_models.pytorch's PSPNet, without its dropout, which each peer would draw anew.

    It takes a list of maps. ``weights`` are those of the same head in stock operators: the decoder has its parameters
    and statistics in the same order, under other names.
    """
    from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

    decoder = PSPDecoder([channels], out_channels=out_channels, dropout=0.0)
    decoder.load_state_dict(dict(zip(decoder.state_dict(), weights.values(), strict=True)))
    return decoder


def head_of(peer: str, channels: int, out_channels: int, project: str) -> nn.Module:
    """A peer's head; all have the same weights. Also the convolution of x alone, which none can leave out."""
    torch.manual_seed(0)
    stock = StockHead(channels, out_channels, ARRANGEMENTS[project])
    if peer == X_ALONE:
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())
    if is_ours(peer):
        fused = FusedHead(channels, out_channels, ARRANGEMENTS[project])
        fused.load_state_dict(stock.state_dict())
        return fused
    return smp_head(channels, out_channels, stock.state_dict()) if peer == SMP else stock


def build_head(shape: Shape, out_channels: int, place: Place, project: str, peer: str) -> Call:
    """A training step of the head: the result, and the gradients of the map and of every parameter."""
    batch, channels, *size = shape
    net = head_of(peer, channels, out_channels, project)
    net = net.to(place.device, memory_format=LAYOUTS[place.layout]).train()
    call = compiled(net, peer)
    x = place.normal(*shape).requires_grad_()  # under autocast the backbone's map comes in the half precision
    upstream = place.normal(batch, out_channels, *size, seed=1)
    leaves = [x, *net.parameters()]

    def step() -> Results:
        with place.autocast(), backend_of(peer):
            return differentiated(lambda x, *_: call([x] if peer == SMP else x), leaves, upstream)

    return step


def levels_together(count: int, results: Results) -> Results:
    """The gradients of the levels' ``count`` parameters as one tensor, to be compared by.

    Over a batch of two the 1x1 level's normalisation gives ±1 for any input, so that nothing but rounding is left of
    its weight's gradient.
    """
    y, x, *parameters = results
    levels, rest = parameters[:count], parameters[count:]
    return y, x, torch.cat([gradient.flatten() for gradient in levels]), *rest


def head(shape: Shape, place: Place, project: str = SEMSEG, *, out: int = 0) -> Case:
    """The head of a map [batch, channels, height, width] with ``out`` channels behind it (a quarter by default)."""
    arrangement, out_channels = ARRANGEMENTS[project], out or shape[1] // 4
    return Case(
        operator="psp_head",
        labels=place.labels(dimensions(*shape)),
        device=place.device,
        **peers_of(["pyramid_pool", "pyramid_conv"], place.device, project),
        build=functools.partial(build_head, shape, out_channels, place, project),
        floor=head_floor(shape, out_channels, arrangement.kernel, place, with_levels=True),
        tolerance=HEAD_TOLERANCE[place.dtype],
        # A convolution and, but for an unnormalised level's bias, a scale and a shift at each level.
        compared=functools.partial(levels_together, 3 * len(BINS) - (0 if arrangement.normalised_1x1 else 1)),
        parts=(X_ALONE,),
        page_faults=True,
    )


def head_floor(shape: Shape, out: int, kernel: int, place: Place, *, with_levels: bool) -> Floor:
    """The least work of the convolution behind the pyramid, forward and backward; ``with_levels``: of the whole head.

    Three times (results, gradients of inputs, gradients of weights): the convolution over x, a product of each level's
    cells with the kernel's taps, and the interpolation by columns; with levels, their 1x1 convolutions.
    """
    batch, channels, height, width = shape
    taps, pixels = kernel * kernel, batch * height * width
    products = taps * channels * out * pixels
    products += batch * CELLS * taps * (channels // len(BINS)) * out + kernel * sum(BINS) * out * pixels
    weights = taps * 2 * channels * out
    if with_levels:
        products += batch * CELLS * channels * (channels // len(BINS))
        weights += channels * channels  # four levels of a quarter of the channels
    return Floor(
        # A map, its gradient, a result, its gradient; x and the weights are read in backward too. Autocast takes
        # weights from float32.
        bytes=(3 * channels + 2 * out) * pixels * place.dtype.itemsize
        + 3 * weights * (4 if with_levels else place.dtype.itemsize),
        flops=3 * 2 * products,
        rate=place.dtype_name,
    )
