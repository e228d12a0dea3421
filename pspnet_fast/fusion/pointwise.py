"""A 1x1 convolution at low resolution, and the sum of what several resolutions give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import backend, ops
from pspnet_fast.fusion.cost import pointwise_pays, projection_pays
from pspnet_fast.fusion.projection import Projection, projected_conv2d
from pspnet_fast.fusion.segments import Geometry, Segment, assemble
from pspnet_fast.layout import is_channels_last


def pointwise(
    segments: Sequence[Segment], out_channels: int, upsample: bool
) -> Callable[[list[Tensor], list[Any]], Tensor]:
    """``fused`` of a ConvPlan over ``segments``; its result is at full resolution if ``upsample``, else at the one low
    resolution that all segments have.
    """

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        weight, bias = others
        autocast = torch.is_autocast_enabled(weight.device.type)
        groups: dict[Geometry | None, list[tuple[Tensor, Tensor, Projection | None]]] = {}
        for leaf, s, part in zip(leaves, segments, weight.split([s.channels for s in segments], dim=1), strict=True):
            geometry = s.geometry if pointwise_pays(s, out_channels) else None
            if geometry != s.geometry:
                leaf = assemble([Segment(leaf, s.geometry, False)], "map")
            projected = geometry == s.geometry and projection_pays(s, out_channels) and not autocast
            groups.setdefault(geometry, []).append((leaf, part, s.projection if projected else None))

        terms: list[tuple[Tensor, Geometry | None]] = []
        for geometry in sorted(groups, key=lambda g: g is not None):  # the dense part first
            terms.append((_products(groups[geometry], None if terms else bias), geometry))
        return _sum(terms) if upsample else terms[0][0]

    return fused


def _products(maps: Sequence[tuple[Tensor, Tensor, Projection | None]], bias: Tensor | None) -> Tensor:
    """The sum of the convolutions of maps of one size by their weights; one of all that are not projected."""
    results = []
    plain = [(x, weight) for x, weight, projection in maps if projection is None]
    if plain:
        x, weight = (t[0] if len(plain) == 1 else torch.cat(t, dim=1) for t in zip(*plain, strict=True))
        results.append(F.conv2d(x, weight, bias))
    for x, weight, projection in maps:
        if projection is not None:
            results.append(projected_conv2d(x, weight, None if results else bias, projection))
    return functools.reduce(Tensor.add_, results)


def _sum(terms: Sequence[tuple[Tensor, Geometry | None]]) -> Tensor:
    """The sum of terms, of which only the first may have full resolution; the others are upsampled."""
    base = terms[0][0] if terms[0][1] is None else None
    lows = [(term, geometry) for term, geometry in terms if geometry is not None]
    corners = {geometry.align_corners for _, geometry in lows}
    if len(terms) > 1 and len(corners) == 1 and backend.select("upsample_add", lows[0][0].device.type) != "reference":
        options: dict[str, Any] = {"align_corners": corners.pop(), "channels_last": is_channels_last(lows[0][0])}
        bins = [geometry.low for _, geometry in lows]
        if options["channels_last"]:  # packed as these lie in memory, and as the kernel reads them
            packed = torch.cat([term.flatten(2).transpose(1, 2) for term, _ in lows], dim=1).transpose(1, 2)
        else:
            packed = torch.cat([term.flatten(2) for term, _ in lows], dim=2)
        return ops.upsample_add(packed, base, size=lows[0][1].full, bins=bins, **options)

    result = base
    for term, geometry in lows:
        term = F.interpolate(term, geometry.full, mode="bilinear", align_corners=geometry.align_corners)
        result = term if result is None else result.add_(term)
    assert result is not None
    return result
