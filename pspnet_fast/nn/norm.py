"""The normalisation layer of a PSPNet: batch or group."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer for ``channels`` channels.

    "batch" is ``nn.BatchNorm2d``. "group" is ``nn.GroupNorm`` with 32 groups (Wu and He 2018,
    https://arxiv.org/abs/1803.08494), or the largest power of two below that leaves every group the same number of
    channels and at least two: a group of one channel on the 1x1 level of the pyramid would hold a single value and
    normalise to zero.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        groups = math.gcd(32, channels)
        if groups == channels and groups % 2 == 0:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"norm must be 'batch' or 'group', not {norm!r}")
