"""The levels of a pyramid in evaluation mode: pooling, 1x1 convolution, batch normalisation and ReLU at every size.

Normalisation by fixed statistics is a factor and a sum, so one kernel applies it, and the ReLU, to the products of all
levels, and packs them: csrc/cuda/pyramid_levels.cu. Elsewhere composed of the fused pooling and PyTorch operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops.checks import (
    check_bins,
    check_dtype,
    check_map,
    check_norm,
    check_tensor,
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


def _behind(pool: Callable[[Tensor, list[int]], Tensor]) -> Callable[..., Tensor]:
    """The operator in PyTorch operators behind this pooling."""

    def levels(x: Tensor, bins: list[int], weight: list[Tensor], *norms: list[Any]) -> Tensor:
        statistics = [NormStatistics(*norm) for norm in zip(*norms, strict=True)]
        return reference.transform_levels(pool(x, bins), weight, statistics, bins)

    return levels


def _fake(x: Tensor, bins: list[int], weight: list[Tensor], *norms: list[Any]) -> Tensor:
    return x.new_empty(x.shape[0], weight[0].shape[0], sum(k * k for k in bins))


LEVELS = Operator(
    "pyramid_levels",
    fake=_fake,
    definition=_behind(reference.pyramid_pool),
    composition=_behind(overload("pyramid_pool")),
    recorded=_behind(pyramid_pool),
    composed=True,
    exported=_behind(pyramid_pool),
    autocast=Autocast(lower_precision=True, keep=("mean", "var", "gamma", "beta")),
)
