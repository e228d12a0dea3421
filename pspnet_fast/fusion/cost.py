"""Where the fused form is the faster one: an estimate from shapes."""

from __future__ import annotations

from collections.abc import Sequence

from pspnet_fast.fusion.segments import Segment


def pixels(size: Sequence[int]) -> int:
    return size[0] * size[1]


def conv_flop(batch: int, out_channels: int, in_channels: int, kernel: int, size: Sequence[int]) -> int:
    """Floating-point operations of a ``kernel x kernel`` convolution."""
    return 2 * batch * out_channels * in_channels * kernel * kernel * pixels(size)


# Measured on one CPU thread, forward and backward, on 1x1 and 3x3 convolutions of 4 to 256 channels at 64x64 and 32x32,
# in multiplications of a matrix product: what it costs to upsample, copy or add a channel of a pixel; by how much the
# estimate of a 1x1 convolution must be better; and what a fused node costs by itself, in Python.
_MOVE = 200
_MARGIN = 1.3
_NODE = 30e6


def pointwise_pays(segment: Segment, out_channels: int) -> bool:
    """Whether a 1x1 convolution of an upsampled map is faster before the upsampling.

    The stock form upsamples and copies the input channels and multiplies at full resolution; the other one multiplies
    at low resolution, then upsamples and adds the output channels.
    """
    geometry = segment.geometry
    if geometry is None:
        return False
    ratio = pixels(geometry.low) / pixels(geometry.full)
    stock = segment.channels * (_MOVE + out_channels)
    fused = out_channels * (_MOVE + segment.channels * ratio)
    return (stock - _MARGIN * fused) * segment.tensor.shape[0] * pixels(geometry.full) > _NODE


def projection_pays(segment: Segment, out_channels: int) -> bool:
    """Whether a 1x1 convolution of a linear layer's result is faster on what the layer was given."""
    projection = segment.projection
    if projection is None or not projection.intact:
        return False
    between, before = projection.weight.shape
    saved = segment.tensor.shape[0] * pixels(segment.tensor.shape[2:]) * out_channels * (between - before)
    return saved - _MARGIN * out_channels * between * before > _NODE


def pyramid_pays(levels: Sequence[Segment], out_channels: int, kernel: int) -> bool:
    """Whether ``pyramid_conv`` beats the convolution of the upsampled levels: those of at most half its area do."""
    gain = 0
    for s in levels:
        if s.geometry is not None:
            saved = pixels(s.geometry.full) - 2 * pixels(s.geometry.low)
            gain += s.channels * (_MOVE + out_channels * kernel * kernel) * saved * s.tensor.shape[0]
    return gain > 2 * _NODE
