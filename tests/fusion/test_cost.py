"""The cost model agrees with what was measured, on one CPU thread, over maps upsampled to 64x64 or 32x32."""

from __future__ import annotations

import pytest
import torch

from pspnet_fast.fusion.cost import conv_flop, pointwise_pays, projection_pays, pyramid_pays
from pspnet_fast.fusion.projection import Projection
from pspnet_fast.fusion.segments import Geometry, Segment


@pytest.fixture(autouse=True)
def _fuse_small_maps():
    """Not here: the cost model as it is."""


def level(channels, side, full=64):
    return Segment(torch.empty(1, channels, side, side), Geometry((side, side), (full, full), False), True)


POINTWISE = {
    **dict.fromkeys([(16, 16), (16, 256), (64, 64), (64, 256)], False),
    **dict.fromkeys([(64, 16), (256, 64), (256, 256), (768, 768), (256, 19)], True),
}


@pytest.mark.parametrize("channels", POINTWISE, ids=str)
@pytest.mark.parametrize("side", [16, 32])
def test_pointwise(channels, side):
    assert pointwise_pays(level(channels[0], side), channels[1]) == POINTWISE[channels]
    assert not pointwise_pays(Segment(torch.empty(1, channels[0], 64, 64), None, True), channels[1])


# Channels of a level and of the result, the side of the map, the kernel.
PYRAMIDS = {
    **dict.fromkeys([(4, 16, 64, 1), (4, 16, 32, 3), (16, 64, 32, 3)], False),
    **dict.fromkeys([(16, 64, 64, 1), (64, 256, 64, 1), (128, 512, 32, 1), (16, 64, 64, 3), (128, 512, 32, 3)], True),
}


@pytest.mark.parametrize("sizes", PYRAMIDS, ids=str)
def test_pyramid_pooling(sizes):
    channels, out_channels, full, kernel = sizes
    levels = [level(channels, side, full) for side in (1, 2, 3, 6)]
    assert pyramid_pays(levels, out_channels, kernel) == PYRAMIDS[sizes]


@pytest.mark.parametrize(("side", "pays"), [(48, False), (32, True), (16, True), (12, True)])
@pytest.mark.parametrize("channels", [64, 256])
def test_large_levels(side, pays, channels):
    assert pyramid_pays([level(channels, side)], channels, 3) == pays


def test_flop():
    assert conv_flop(2, 5, 7, 3, (4, 6)) == 2 * 2 * 5 * 7 * 9 * 24


@pytest.mark.parametrize(
    ("before", "side", "pays"), [(64, 128, True), (320, 32, True), (512, 16, False), (768, 128, False)]
)
def test_projected_maps(before, side, pays):
    projection = Projection(torch.empty(1), torch.empty(768, before), None, 0)
    tensor = torch.empty(1, 768, 1, 1).expand(2, 768, side, side)
    geometry = Geometry((side, side), (128, 128), False)
    assert not projection_pays(Segment(tensor, geometry, True), 768)
    assert projection_pays(Segment(tensor, geometry, True, projection), 768) == pays
