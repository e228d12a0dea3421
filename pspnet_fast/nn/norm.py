"""The normalisation layer of a PSPNet: batch or group."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pspnet_fast.reference import NormStatistics

from .fusibility import changed_reason

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


def frozen_norm(norm: nn.Module, activation: nn.Module) -> NormStatistics | None:
    """The statistics of a batch normalisation with ReLU behind it that inference may apply as a factor and a sum.

    None where the modules must be called: gradients are recorded, the batch's own statistics are used, one of the
    modules was replaced or hooked, or torch.jit.trace runs, which compares a trace with gradients with one without.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or norm.training or not isinstance(norm, _BatchNorm):
        return None
    types = nn.SyncBatchNorm if isinstance(norm, nn.SyncBatchNorm) else nn.BatchNorm2d
    if changed_reason("norm", norm, types) or changed_reason("activation", activation, nn.ReLU):
        return None
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        return None
    return NormStatistics(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
