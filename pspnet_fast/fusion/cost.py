"""Where the fused form is the faster one: an estimate from shapes."""

from __future__ import annotations

from collections.abc import Sequence

from pspnet_fast.fusion.cells import Geometry, Segment


def pixels(size: Sequence[int]) -> int:
    return size[0] * size[1]


def conv_flop(batch: int, out_channels: int, in_channels: int, kernel: int, size: Sequence[int]) -> int:
    """Floating-point operations of a ``kernel x kernel`` convolution."""
    return 2 * batch * out_channels * in_channels * kernel * kernel * pixels(size)


def pointwise_pays(segment: Segment, out_channels: int) -> bool:
    """Whether a 1x1 convolution of an upsampled map is faster before the upsampling.

    The stock form upsamples and copies the input channels and multiplies at full resolution; the other one multiplies
    at low resolution, then upsamples and adds the output channels. One pixel and channel costs about as much to
    upsample, or to copy and add, as 16 to 32 multiplications of a matrix product.
    """
    geometry = segment.geometry
    if geometry is None:
        return False
    ratio = pixels(geometry.low) / pixels(geometry.full)
    stock = segment.channels * (2 * _MOVE + out_channels)
    fused = out_channels * (2 * _MOVE + segment.channels * ratio)
    return fused < stock


_MOVE = 24


def pyramid_pays(levels: Sequence[Geometry]) -> bool:
    """Whether ``pyramid_conv`` beats a 3x3 convolution of the upsampled maps: levels of at most half their area do."""
    return 2 * sum(pixels(g.low) for g in levels) <= sum(pixels(g.full) for g in levels)
