"""The head's first three modules in evaluation mode: :func:`pspnet_fast.pyramid_conv`, batch normalisation, ReLU.

Normalisation by fixed statistics and ReLU are applied where the levels' terms are added into the convolution's output,
so that nothing of full size is made beside that output. Native kernels: those of pyramid_conv, with an epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops import _pyramid_conv as composed
from pspnet_fast.ops._checks import check_norm, differentiable
from pspnet_fast.ops._pyramid_conv import convolve_x, weight_parts
from pspnet_fast.ops.operator import Autocast, Operator
from pspnet_fast.ops.pyramid_conv import check_pyramid_conv, pyramid_conv
from pspnet_fast.reference import DEFAULT_BINS, NormStatistics


def pyramid_conv_norm_relu(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    norm: NormStatistics,
    bias: Tensor | None = None,
    *,
    bins: Sequence[int] = DEFAULT_BINS,
    align_corners: bool = True,
    x_first: bool = True,
) -> Tensor:
    """``relu(batch_norm(pyramid_conv(x, levels, weight, bias)))`` with fixed statistics.

    Args:
        x, levels, weight, bias, bins, align_corners, x_first: as for :func:`pspnet_fast.pyramid_conv`.
        norm: statistics of the normalisation, ``[O]`` tensors.

    Returns:
        ``[B, O, H, W]``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.

    Made for inference: where a gradient is wanted the three steps run one after the other. Under autocast it runs in
    the lower precision, as a convolution does.
    """
    checked = check_pyramid_conv(x, levels, weight, bias, bins)
    check_norm("norm", norm, weight)
    arguments = x, levels, weight, bias, *norm, checked, align_corners, x_first
    backend = CONV_NORM_RELU.backend(x)
    if backend == "reference" or x.shape[1] == 0:  # no channels: see pyramid_conv
        return _define(*arguments)
    if differentiable(x, levels, weight, bias, *norm[:4]):
        y = pyramid_conv(x, levels, weight, bias, bins=checked, align_corners=align_corners, x_first=x_first)
        return reference.norm_relu(y, norm)
    output: Tensor = CONV_NORM_RELU.run(backend, *arguments)
    return output


def _define(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    bins: list[int],
    align_corners: bool,
    x_first: bool,
) -> Tensor:
    norm = NormStatistics(mean, var, gamma, beta, eps)
    return reference.pyramid_conv_norm_relu(
        x, levels, weight, norm, bias, bins=bins, align_corners=align_corners, x_first=x_first
    )


def _compose(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    bins: list[int],
    align_corners: bool,
    x_first: bool,
) -> Tensor:
    y = composed.forward(x, levels, weight, bias, bins, align_corners, x_first)
    return torch.relu_(torch.batch_norm(y, gamma, beta, mean, var, False, 0.0, eps, False))


def _triton(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    bins: list[int],
    align_corners: bool,
    x_first: bool,
) -> Tensor:
    from pspnet_fast.triton.pyramid_conv import pyramid_conv_add

    y = convolve_x(x, weight, bias, weight_parts(x, levels, len(bins), x_first).x)
    norm = NormStatistics(mean, var, gamma, beta, eps)
    pyramid_conv_add(y, levels, weight, bins, align_corners, x_first, norm)
    return y


def _fake(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *norm_and_options: Any) -> Tensor:
    bins, _, x_first = norm_and_options[-3:]
    return convolve_x(x, weight, bias, weight_parts(x, levels, len(bins), x_first).x)


CONV_NORM_RELU = Operator(
    "pyramid_conv_norm_relu",
    fake=_fake,
    definition=_define,
    composition=_compose,
    composed=True,
    triton=_triton,
    autocast=Autocast(lower_precision=True, keep=("mean", "var", "gamma", "beta")),
)
