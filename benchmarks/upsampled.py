"""Cases of a map and upsampled levels beside it: their sum, and a convolution over all of them.

SegFormer's head has the sum behind its 1x1 convolutions; UPerNet fuses the levels of its neck by the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from benchmarks.case import Case, Floor, Place, dimensions
from benchmarks.peers import COMPILE, EAGER, OURS, operator_case
from benchmarks.pyramid import TOLERANCE, Shape

FACTORS = (2, 4, 8)  # the levels' strides over the map's
KERNEL = 3


def map_shapes(shape: Shape) -> list[Shape]:
    """Of a base [batch, channels, height, width], and of levels of a half, a quarter and an eighth of its sides."""
    return [(*shape[:2], shape[2] // factor, shape[3] // factor) for factor in (1, *FACTORS)]


def title(shape: Shape) -> str:
    return f"{' + '.join(dimensions(*level[2:]) for level in map_shapes(shape)[1:])} -> {dimensions(*shape)}"


def packed(levels: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
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


def sum_case(shape: Shape, place: Place) -> Case:
    """The sum of levels and a base of ``shape``, with all gradients."""
    elements, nodes = math.prod(shape), sum(map(math.prod, map_shapes(shape)[1:]))
    return operator_case(
        "upsample_add",
        place,
        (stock_sum, fused_sum),
        map_shapes(shape),
        title=title(shape),
        result=shape,
        # The base is read and the result is written; the result's gradient, which is also the base's, is read.
        # Interpolating a level's rows takes a multiply-add for each element of the result, each way.
        floor=Floor(bytes=(3 * elements + 2 * nodes) * place.dtype.itemsize, flops=2 * 2 * len(FACTORS) * elements),
        tolerance=TOLERANCE[place.dtype],
    )


# ---- the convolution -------------------------------------------------------------------------------------------------


def stock_conv(base: Tensor, *others: Tensor) -> Tensor:
    *levels, weight = others
    ups = [F.interpolate(level, base.shape[2:], mode="bilinear", align_corners=False) for level in levels]
    return F.conv2d(torch.cat([base, *ups], dim=1), weight, padding=KERNEL // 2)


def fused_conv(base: Tensor, *others: Tensor) -> Tensor:
    *levels, weight = others
    cells, bins = packed(levels)
    return pspnet_fast.pyramid_conv(base, cells, weight, bins=bins, align_corners=False)


def conv_case(shape: Shape, place: Place, *, backward: bool) -> Case:
    """A convolution of levels and a base of ``shape`` to as many channels; on a CPU on one thread, by its own time."""
    batch, channels, height, width = shape
    pixels, cells = batch * height * width, sum(batch * h * w for *_, h, w in map_shapes(shape)[1:])
    # The base's and every level's own products; a pixel reads two columns of every level at each tap.
    products = KERNEL**2 * channels**2 * (pixels + cells) + 2 * KERNEL * len(FACTORS) * channels * pixels
    weight = KERNEL**2 * channels**2 * (1 + len(FACTORS))
    # Results; gradients of inputs; of weights. Backward reads the result's gradient, the maps and the weight, and
    # writes the gradients of these.
    passes = 3 if backward else 1
    elements = channels * (2 * pixels + cells) + weight
    on_cpu = place.device == "cpu"
    return operator_case(
        "pyramid_conv",
        place,
        (stock_conv, fused_conv),
        map_shapes(shape),
        title=title(shape),
        weight=(channels, (1 + len(FACTORS)) * channels, KERNEL, KERNEL),
        result=shape if backward else None,
        floor=Floor(passes * elements * place.dtype.itemsize, passes * 2 * products, place.dtype_name),
        # A GPU's convolutions take float32 as TF32, whose numbers have 11 bits.
        tolerance=TOLERANCE[place.dtype] if on_cpu else {torch.float32: 2e-3, torch.bfloat16: 5e-2}[place.dtype],
        threads=1 if on_cpu else None,
        processor_time=on_cpu,
        # On a GPU "auto" leaves such levels to cuDNN, whatever kernels there are.
        **({} if on_cpu else {"peers": (EAGER, COMPILE, OURS)}),
    )
