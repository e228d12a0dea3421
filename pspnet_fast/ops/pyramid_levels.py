"""The levels of a pyramid in evaluation mode: pooling, 1x1 convolution, batch normalisation and ReLU at every size.

Normalisation by fixed statistics is a factor and a sum, so a kernel applies it, and the ReLU, to each product as it is
written. Native kernel: csrc/cuda/pyramid_levels.cu; elsewhere composed of the fused pooling and PyTorch operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops._checks import (
    check_bins,
    check_dtype,
    check_map,
    check_norm,
    check_tensor,
    differentiable,
    same_device,
)
from pspnet_fast.ops.operator import Autocast, Operator, overload
from pspnet_fast.ops.pyramid_pool import pyramid_pool
from pspnet_fast.reference import DEFAULT_BINS, NormStatistics


def pyramid_levels(
    x: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int] = DEFAULT_BINS
) -> Tensor:
    """Pool ``x`` to every size of ``bins``, and project, normalise and rectify each level.

    Args:
        x: ``[B, C, H, W]``, floating-point, NCHW or channels_last.
        weights: a level's 1x1 convolution ``[Ck, C, 1, 1]`` for each of ``bins``, of x's dtype.
        norms: statistics of a level's batch normalisation for each of ``bins``, ``[Ck]`` tensors.
        bins: the sides of the levels, in the order they are packed.

    Returns:
        ``[B, Ck, Σk²]`` of x's dtype: level after level, each row-major.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together, or the lists are not as long as ``bins``.

    Made for inference: where a gradient is wanted it runs as differentiable PyTorch operators behind the fused pooling.
    Under autocast it runs in the lower precision, as a convolution does.
    """
    checked = check_bins(bins)
    check_map("x", x)
    _check_levels(x, weights, norms, checked)
    if LEVELS.backend(x) != "reference" and differentiable(x, *weights, *(t for norm in norms for t in norm[:4])):
        return _transform(pyramid_pool(x, checked), weights, norms, checked)
    mean, var, gamma, beta, eps = (list(values) for values in zip(*norms, strict=True))
    output: Tensor = LEVELS(x, checked, list(weights), mean, var, gamma, beta, eps)
    return output


def _check_levels(x: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int]) -> None:
    if x.shape[1] < 1:
        raise ValueError(f"x has no channels: its shape is {tuple(x.shape)}")
    for name, given in (("weights", weights), ("norms", norms)):
        if len(given) != len(bins):
            raise ValueError(f"{name} must hold one entry for each of {len(bins)} bins, not {len(given)}")
    for i, weight in enumerate(weights):
        check_tensor(f"weights[{i}]", weight)
    shape = (*weights[0].shape[:1], x.shape[1], 1, 1)
    for i, (weight, norm) in enumerate(zip(weights, norms, strict=True)):
        if weight.shape != shape:
            raise ValueError(f"weights[{i}] must be {list(shape)}, as x and weights[0] say, not {list(weight.shape)}")
        same_device(f"weights[{i}]", weight, "x", x)
        check_dtype(f"weights[{i}]", weight, "x", x)
        check_norm(f"norms[{i}]", norm, weight)


def _transform(
    pooled: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int]
) -> Tensor:
    """Projection, normalisation and ReLU of packed pooled levels."""
    levels = [
        reference.norm_relu(torch.conv2d(level, weight), norm).flatten(2)
        for level, weight, norm in zip(reference.unpack_levels(pooled, bins), weights, norms, strict=True)
    ]
    return torch.cat(levels, dim=2)


def _compose(
    x: Tensor,
    bins: list[int],
    weight: list[Tensor],
    mean: list[Tensor],
    var: list[Tensor],
    gamma: list[Tensor],
    beta: list[Tensor],
    eps: list[float],
) -> Tensor:
    return _transform(overload("pyramid_pool")(x, bins), weight, _unpack(mean, var, gamma, beta, eps), bins)


def _define(x: Tensor, bins: list[int], weight: list[Tensor], *norms: list[Any]) -> Tensor:
    return reference.pyramid_levels(x, weight, _unpack(*norms), bins)


def _unpack(*norms: list[Any]) -> list[NormStatistics]:
    """One normalisation for each level from the operator's lists of mean, var, gamma, beta and eps."""
    return [NormStatistics(*norm) for norm in zip(*norms, strict=True)]


def _fake(x: Tensor, bins: list[int], weight: list[Tensor], *norms: list[Any]) -> Tensor:
    return x.new_empty(x.shape[0], weight[0].shape[0], sum(k * k for k in bins))


LEVELS = Operator(
    "pyramid_levels",
    fake=_fake,
    definition=_define,
    composition=_compose,
    composed=True,
    autocast=Autocast(lower_precision=True, keep=("mean", "var", "gamma", "beta")),
)
