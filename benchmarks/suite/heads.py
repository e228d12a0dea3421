"""The head from pooling to the ReLU behind its convolution, as each project arranges it.

Whoever never builds the concatenation must still give the function of the project that does: the order of its channels,
its upsampling, its kernel, and what is normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from benchmarks.pyramid import BINS, CELLS, TOLERANCE
from benchmarks.suite.configurations import (
    MMSEG,
    SEMSEG,
    SMP,
    Configuration,
    Precision,
    configurations,
    labels,
    of_distinct_maps,
    precisions,
)
from benchmarks.suite.packages import SmpHead, peers_of


@dataclass(frozen=True)
class HeadArrangement:
    """A project's head.

    Attributes:
        words: the function, for the table.
        align_corners: of the levels' upsampling.
        x_first: whether the map comes before its levels in the concatenation.
        kernel: side of the convolution behind it.
        narrowed: how many times narrower the map is than the backbone's last one.
        normalised_1x1: whether the 1x1 level has batch normalisation; a bias where not.
    """

    words: str
    align_corners: bool = True
    x_first: bool = True
    kernel: int = 3
    narrowed: int = 1
    normalised_1x1: bool = True


ARRANGEMENTS = {
    SEMSEG: HeadArrangement("align_corners, x first, 3x3 convolution"),
    MMSEG: HeadArrangement("no align_corners, x first, 3x3 convolution", align_corners=False),
    SMP: HeadArrangement(
        "align_corners, x last, 1x1 convolution, no normalisation of the 1x1 level",
        x_first=False,
        kernel=1,
        narrowed=4,
        normalised_1x1=False,
    ),
}


def projects_at(configuration: Configuration, *, quick: bool) -> list[str]:
    """Whose head is measured at a configuration: its recipe's, and that of smp, which has no recipes; all if quick."""
    return [project for project in ARRANGEMENTS if quick or project in (configuration.recipe, SMP)]


def cases(device: str, *, quick: bool) -> list[Case]:
    """The heads of every distinct map, in each precision."""
    return [
        head(configuration, precision, project, device)
        for configuration in of_distinct_maps(configurations(device, quick=quick))
        for precision in precisions(device)
        for project in projects_at(configuration, quick=quick)
    ]


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
            level[1:](cells.unflatten(2, (k, k))).flatten(2)  # type: ignore[index]
            for level, cells, k in zip(self.levels, pooled, BINS, strict=True)
        ]
        y = pspnet_fast.pyramid_conv(
            x,
            torch.cat(levels, dim=2),
            self.conv.weight,
            bins=BINS,
            align_corners=self.arrangement.align_corners,
            x_first=self.arrangement.x_first,
        )
        return F.relu(self.bn(y))


def network_of(peer: str, channels: int, out_channels: int, project: str) -> nn.Module:
    """A peer's head; all have the same weights."""
    torch.manual_seed(0)
    stock = StockHead(channels, out_channels, ARRANGEMENTS[project])
    if is_ours(peer):
        fused = FusedHead(channels, out_channels, ARRANGEMENTS[project])
        fused.load_state_dict(stock.state_dict())
        return fused
    return SmpHead(channels, out_channels, stock.state_dict()) if peer == SMP else stock


def levels_together(count: int) -> Callable[[Results], Results]:
    """What heads are compared by: the result, the gradient of x, those of the levels' ``count`` parameters as one,
    and the others (the reason is in :func:`benchmarks.pyramid.levels_together`).
    """

    def compared(results: Results) -> Results:
        y, x, *parameters = results
        levels, rest = parameters[:count], parameters[count:]
        return y, x, torch.cat([gradient.flatten() for gradient in levels]), *rest

    return compared


def head(configuration: Configuration, precision: Precision, project: str, device: str) -> Case:
    """A training step of the head: results, and gradients of the map and of every parameter."""
    arrangement = ARRANGEMENTS[project]
    batch, (height, width) = configuration.map_images, configuration.map_size
    channels, out = configuration.channels // arrangement.narrowed, configuration.channels // 4
    dtype, layout = precision.dtype, precision.layout

    def build(peer: str) -> Call:
        net = network_of(peer, channels, out, project)
        net = net.to(device, memory_format=LAYOUTS[layout]).train()  # type: ignore[call-overload]
        call = compiled(net, peer)
        # Under autocast the backbone's map comes in the half precision.
        x = normal(batch, channels, height, width, device=device, dtype=dtype, layout=layout).requires_grad_()
        upstream = normal(batch, out, height, width, device=device, dtype=dtype, layout=layout, seed=1)
        leaves = [x, *net.parameters()]

        def step() -> Results:
            with as_training(device, dtype), backend_of(peer):
                return differentiated(lambda: call(x), leaves, upstream)

        return step

    own, absent = peers_of(project)
    return Case(
        operator="psp_head",
        labels=labels(
            configuration, precision, dimensions(batch, channels, height, width), project, "forward + backward"
        ),
        device=device,
        peers=(EAGER, COMPILE, *own, *our_peers(["pyramid_pool", "pyramid_conv"], device)),
        build=build,
        floor=head_floor(batch, channels, out, height * width, arrangement.kernel, dtype, with_levels=True),
        tolerance=TOLERANCE[dtype],
        # A convolution and, but for an unnormalised level's bias, a scale and a shift at each level.
        compared=levels_together(3 * len(BINS) - (0 if arrangement.normalised_1x1 else 1)),
        absent=absent,
    )


def head_floor(
    batch: int, channels: int, out: int, pixels: int, kernel: int, dtype: torch.dtype, *, with_levels: bool
) -> Floor:
    """The least work of the convolution behind the pyramid, forward and backward; ``with_levels``: of the whole head.

    Three times (results, gradients of inputs, gradients of weights): the convolution over x, a product of each level's
    cells with the kernel's taps, and the interpolation by columns; with levels, their 1x1 convolutions.
    """
    taps, width = kernel * kernel, channels // len(BINS)
    products = taps * channels * out * batch * pixels
    products += batch * CELLS * taps * width * out + kernel * sum(BINS) * out * batch * pixels
    weights = taps * 2 * channels * out
    if with_levels:
        products += batch * CELLS * channels * width
        weights += channels * channels  # four levels of a quarter of the channels
    return Floor(
        # A map, its gradient, a result, its gradient; x and the weights are read in backward too. Autocast takes
        # weights from float32.
        bytes=(3 * channels + 2 * out) * batch * pixels * dtype.itemsize
        + 3 * weights * (4 if with_levels else dtype.itemsize),
        flops=3 * 2 * products,
        rate=dtype_name(dtype),
    )
