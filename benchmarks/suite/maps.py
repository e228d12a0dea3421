"""The pyramid's operators alone, on the maps that the configurations' backbones give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import pspnet_fast
from benchmarks import pyramid
from benchmarks.case import (
    COMPILE,
    EAGER,
    LAYOUTS,
    Call,
    Case,
    Results,
    backend_of,
    compiled,
    differentiated,
    dimensions,
    is_ours,
    normal,
    our_peers,
)
from benchmarks.ceilings import Floor
from benchmarks.pyramid import BINS, CELLS
from benchmarks.suite.configurations import (
    SEMSEG,
    Configuration,
    Precision,
    configurations,
    labels,
    of_distinct_maps,
    precisions,
)
from benchmarks.suite.heads import ARRANGEMENTS, HeadArrangement, head_floor
from pspnet_fast import reference

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def cases(device: str, *, quick: bool) -> list[Case]:
    """Pooling, concatenation and the convolution behind it, forward and backward, of every distinct map."""
    return [
        make(configuration, precision, device)
        for configuration in of_distinct_maps(configurations(device, quick=quick))
        for precision in precisions(device)
        for make in (pool, concat, conv)
    ]


def pool(configuration: Configuration, precision: Precision, device: str) -> Case:
    """Every level of the map, and the gradient of the map: the same function in every project."""
    shape = (configuration.map_images, configuration.channels, *configuration.map_size)
    case = pyramid.pool(shape, precision.layout, device, dtype=precision.dtype, backward=True)
    return replace(case, labels=labels(configuration, precision, dimensions(*shape), SEMSEG, "forward + backward"))


def concat(configuration: Configuration, precision: Precision, device: str) -> Case:
    """The upsampled levels behind the map, as a project concatenates them, and the gradients of map and levels."""
    batch, channels, pixels = configuration.map_images, configuration.channels, _pixels(configuration)
    elements = 2 * (2 * channels) * batch * pixels + 2 * batch * channels * pixels  # results, their gradients; x, its
    return _case(
        "pyramid_concat",
        configuration,
        precision,
        device,
        weight_shape=None,
        # Interpolating takes a multiply-add an element at least, each way.
        floor=Floor(bytes=elements * precision.dtype.itemsize, flops=2 * 2 * channels * batch * pixels),
    )


def conv(configuration: Configuration, precision: Precision, device: str) -> Case:
    """The convolution of that concatenation, and the gradients of map, levels and weight."""
    kernel, channels = ARRANGEMENTS[configuration.recipe].kernel, configuration.channels
    out, batch = channels // 4, configuration.map_images
    return _case(
        "pyramid_conv",
        configuration,
        precision,
        device,
        weight_shape=(out, 2 * channels, kernel, kernel),
        floor=head_floor(batch, channels, out, _pixels(configuration), kernel, precision.dtype, with_levels=False),
    )


def _pixels(configuration: Configuration) -> int:
    height, width = configuration.map_size
    return height * width


def _case(
    operator: str,
    configuration: Configuration,
    precision: Precision,
    device: str,
    *,
    weight_shape: tuple[int, int, int, int] | None,
    floor: Floor,
) -> Case:
    """An operator of a map and its levels, and of a weight where it has one."""
    batch, channels, size = configuration.map_images, configuration.channels, configuration.map_size
    dtype, layout, project = precision.dtype, precision.layout, configuration.recipe

    def build(peer: str) -> Call:
        leaves = [
            normal(batch, channels, *size, device=device, dtype=dtype, layout=layout),
            normal(batch, channels // len(BINS), CELLS, device=device, dtype=dtype, seed=1),
        ]
        out = 2 * channels
        if weight_shape is not None:
            # Of the size that a network's has, so that results are about 1.
            weight = normal(*weight_shape, device=device, layout=layout, seed=2) / weight_shape[1] ** 0.5
            leaves.append(weight.to(dtype).contiguous(memory_format=LAYOUTS[layout]))
            out = weight_shape[0]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        upstream = normal(batch, out, *size, device=device, dtype=dtype, layout=layout, seed=3)
        function = _function(operator, peer, ARRANGEMENTS[project])

        def step() -> Results:
            with backend_of(peer):
                return differentiated(lambda: function(*leaves), leaves, upstream)

        return step

    return Case(
        operator=operator,
        labels=labels(configuration, precision, dimensions(batch, channels, *size), project, "forward + backward"),
        device=device,
        peers=(EAGER, COMPILE, *our_peers([operator], device)),
        build=build,
        floor=floor,
        tolerance=TOLERANCE[dtype],
    )


def _function(operator: str, peer: str, arrangement: HeadArrangement) -> Callable[..., Tensor]:
    """The operator as a peer computes it, with a project's options."""
    options: dict[str, Any] = {
        "bins": BINS,
        "align_corners": arrangement.align_corners,
        "x_first": arrangement.x_first,
    }
    function = getattr(pspnet_fast if is_ours(peer) else reference, operator)

    def call(*inputs: Tensor) -> Tensor:
        result: Tensor = function(*inputs, **options)
        return result

    return compiled(call, peer)
