"""The head's first three modules in evaluation mode: :func:`pspnet_fast.pyramid_conv`, batch normalisation, ReLU.

Normalisation by fixed statistics and ReLU are applied where the levels' terms are added into the convolution's output,
so that no other tensor of full size is made. Native kernels: those of pyramid_conv, with an epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops import pyramid_conv_composed as composed
from pspnet_fast.ops.checks import check_norm
from pspnet_fast.ops.operator import Autocast, Operator
from pspnet_fast.ops.pyramid_conv import check_pyramid_conv, convolve_x_part, pyramid_conv
from pspnet_fast.reference import DEFAULT_BINS, Bin, NormStatistics


def pyramid_conv_norm_relu(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    norm: NormStatistics,
    bias: Tensor | None = None,
    *,
    bins: Sequence[Bin] = DEFAULT_BINS,
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
    sizes = check_pyramid_conv(x, levels, weight, bias, bins)
    check_norm("norm", norm, weight)
    output: Tensor = CONV_NORM_RELU(x, levels, weight, bias, *norm, sizes, align_corners, x_first)
    return output


def _behind(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator in PyTorch operators behind this convolution over the pyramid."""

    def conv_norm_relu(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *norm, sizes, align_corners, x_first = options
        bins = composed.size_pairs(sizes)
        y = convolve(x, levels, weight, bias, bins=bins, align_corners=align_corners, x_first=x_first)
        return reference.norm_relu(y, NormStatistics(*norm))

    return conv_norm_relu


def _compose(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    mean, var, gamma, beta, eps, *rest = options
    y = composed.forward(x, levels, weight, bias, *rest)
    return torch.relu_(torch.batch_norm(y, gamma, beta, mean, var, False, 0.0, eps, False))


def fold_norm(weight: Tensor, bias: Tensor | None, norm: NormStatistics) -> tuple[Tensor, Tensor]:
    """Weight ``[O, …]`` and bias ``[O]`` of a convolution that gives what ``norm`` makes of the result of this one."""
    scale = norm.gamma / (norm.var + norm.eps).sqrt()
    centre = norm.mean if bias is None else norm.mean - bias
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), norm.beta - centre * scale


def _export(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    norm = NormStatistics(*options[:-3])
    return composed.export(x, levels, *fold_norm(weight, bias, norm), *options[-3:]).relu()


def _triton(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    from pspnet_fast.triton.pyramid_conv import pyramid_conv_add

    *norm, sizes, align_corners, x_first = options
    y = convolve_x_part(x, levels, weight, bias, *options)
    pyramid_conv_add(y, levels, weight, sizes, align_corners, x_first, NormStatistics(*norm))
    return y


CONV_NORM_RELU = Operator(
    "pyramid_conv_norm_relu",
    fake=convolve_x_part,
    definition=_behind(reference.pyramid_conv),
    composition=_compose,
    recorded=_behind(pyramid_conv),
    composed=True,
    exported=_export,
    triton=_triton,
    autocast=Autocast(lower_precision=True, keep=("mean", "var", "gamma", "beta")),
)
