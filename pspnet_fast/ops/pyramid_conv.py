"""The convolution after the pyramid, without the concatenation.

Upsampling is linear and so is the convolution: each level's term needs only its own bins, and is added into the
convolution over x itself (the derivation is in pyramid_conv_composed.py, which serves every device). Neither the
upsampled maps nor the concatenation exist, and backward keeps only x and the small tensors; but large levels are
upsampled on a GPU, where the convolution of them is faster. Native kernels for everything but the convolution over x:
csrc/cpu/pyramid_conv*.cpp, csrc/cuda/pyramid_conv*.cu, triton/pyramid_conv.py. In evaluation mode the head's next two
modules, normalisation by fixed statistics and ReLU, are applied where the levels' terms are added into the
convolution's output, so that no other tensor of full size is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.backend import active_backend
from pspnet_fast.geometry import size_pairs
from pspnet_fast.layout import empty_map, is_channels_last
from pspnet_fast.ops import pyramid_conv_composed as composed
from pspnet_fast.ops.checks import check_alike, check_level_sizes, check_levels, check_map, check_norm, check_tensor
from pspnet_fast.ops.operator import Operator, second_gradient
from pspnet_fast.ops.upsample_add import upsample_add
from pspnet_fast.reference import DEFAULT_BINS, Bin, NormStatistics

# Levels of more rows or columns together, which the CUDA kernels' tables do not hold (kMaxBins), are upsampled on a
# GPU. For levels of 64, 32 and 16 rows on an H200 (docs/benchmarks.md), cuDNN's convolution of upsampled maps took 0.3
# to 1.0 times as long as the forms without them.
_MOST_BINS_ON_GPU = 32


def pyramid_conv(
    x: Tensor,
    levels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bins: Sequence[Bin] = DEFAULT_BINS,
    align_corners: bool = True,
    x_first: bool = True,
) -> Tensor:
    """Convolve the concatenation of ``x`` and its upsampled pyramid levels: ``conv2d(pyramid_concat(x, levels))``.

    Args:
        x: ``[B, C, H, W]``, floating-point, NCHW or channels_last.
        levels: ``[B, Ck, Σhw]``, packed as :func:`pspnet_fast.pyramid_pool` packs them, of x's dtype: level after
            level, each row-major.
        weight: ``[O, C + L·Ck, kh, kw]`` with odd kh and kw (1x1 or 3x3 in every known PSPNet); stride 1, dilation 1,
            zero padding ``(kh // 2, kw // 2)``. Input channels in the order of the concatenation.
        bias: ``[O]`` or None.
        bins: the sides of square levels, or their sizes ``(h, w)``, in their order in ``levels`` and in ``weight``. Any
            size from 1 to 4096, larger than x's too.
        align_corners: of the upsampling, as in ``torch.nn.functional.interpolate``.
        x_first: whether x's channels come before the levels' (semseg, mmsegmentation) or after them
            (segmentation_models.pytorch).

    Returns:
        ``[B, O, H, W]``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.

    Differentiable twice. Under autocast it runs in the lower precision, as a convolution does. On a GPU, levels of more
    than 32 rows or columns together are upsampled and concatenated, unless a back end is forced (``use_backend``).
    """
    sizes = _check(x, levels, weight, bias, bins)
    large = max(sum(sizes[::2]), sum(sizes[1::2])) > _MOST_BINS_ON_GPU
    if large and x.device.type == "cuda" and active_backend() == "auto":
        return upsampled_conv(x, levels, weight, bias, sizes, align_corners, x_first)
    output: Tensor = CONV(x, levels, weight, bias, sizes, align_corners, x_first)
    return output


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
    sizes = _check(x, levels, weight, bias, bins)
    check_norm("norm", norm, weight)
    output: Tensor = CONV_NORM_RELU(x, levels, weight, bias, *norm, sizes, align_corners, x_first)
    return output


def upsampled_conv(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """:func:`pyramid_conv` by its definition, with upsampling whose gradient is deterministic on a GPU too."""
    sizes, align_corners, x_first = options
    bins = size_pairs(sizes)
    given: dict[str, Any] = {"align_corners": align_corners, "channels_last": is_channels_last(x)}
    maps = [
        upsample_add(level, size=x.shape[2:], bins=[size], **given)
        for level, size in zip(levels.split([h * w for h, w in bins], dim=2), bins, strict=True)
    ]
    merged = torch.cat([x, *maps] if x_first else [*maps, x], dim=1)
    return F.conv2d(merged, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def _check(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, bins: Sequence[Bin]) -> list[int]:
    """h and w of each level in one list; raises unless the tensors fit together as :func:`pyramid_conv` says."""
    sizes = check_level_sizes(bins)
    check_map("x", x)
    check_levels(levels, sizes, x)
    check_tensor("weight", weight)
    level_count = len(sizes)
    channels = x.shape[1] + level_count * levels.shape[1]
    if weight.dim() != 4 or weight.shape[1] != channels:
        raise ValueError(
            f"weight must be [O, {channels}, kh, kw] for x of {x.shape[1]} channels and {level_count} levels of "
            f"{levels.shape[1]}, not {tuple(weight.shape)}"
        )
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"weight must have odd kernel sides, so that padding keeps the size, not {weight.shape[2:]}")
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{weight.shape[0]}], not {tuple(bias.shape)}")
    for name, tensor in (("levels", levels), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_alike(name, tensor, "x", x)
    return [n for size in sizes for n in size]


def _behind(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Either operator in PyTorch operators behind this convolution over the pyramid."""

    def conv(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *norm, sizes, align_corners, x_first = options
        bins = size_pairs(sizes)
        y = convolve(x, levels, weight, bias, bins=bins, align_corners=align_corners, x_first=x_first)
        return reference.norm_relu(y, NormStatistics(*norm)) if norm else y

    return conv


_define = _behind(reference.pyramid_conv)


def _convolve_x(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """The convolution over x alone, for options that end in sizes, align_corners and x_first; all the results' fake."""
    sizes, _, x_first = options[-3:]
    return composed.convolve_x(x, weight, bias, composed.weight_parts(x, levels, len(sizes) // 2, x_first).x)


def _fake_backward(
    grad: Tensor, x: Tensor, levels: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, mask = options
    return (
        empty_map(x, x.shape[1], x.shape[2], x.shape[3], is_channels_last(x)) if mask[0] else x.new_empty(0),
        levels.new_empty(levels.shape if mask[1] else 0),
        torch.empty_like(weight) if mask[2] else weight.new_empty(0),
    )


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:3])
    found = CONV_BACKWARD.like(ctx)(grad, *ctx.saved_tensors, *ctx.options, mask) if any(mask) else (None,) * 3
    grads = [g if wanted else None for g, wanted in zip(found, mask, strict=True)]
    return *grads, grad.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None


def _differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad, *inputs = ctx.saved_tensors
    *options, mask = ctx.options

    def definition(x: Tensor, levels: Tensor, weight: Tensor) -> Tensor:
        return _define(x, levels, weight, None, *options)

    wanted = [c if m else None for c, m in zip(cotangents, mask, strict=True)]
    return (*second_gradient(definition, inputs, grad, wanted),)


def _triton_forward(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    from pspnet_fast.triton.pyramid_conv import pyramid_conv_add

    *norm, sizes, align_corners, x_first = options
    y = _convolve_x(x, levels, weight, bias, *options)
    pyramid_conv_add(y, levels, weight, sizes, align_corners, x_first, NormStatistics(*norm) if norm else None)
    return y


def _triton_backward(
    grad: Tensor, x: Tensor, levels: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from pspnet_fast.triton.pyramid_conv import pyramid_conv_levels_backward

    sizes, align_corners, x_first, mask = options
    part = composed.weight_parts(x, levels, len(sizes) // 2, x_first).x
    grad_x, grad_weight = composed.convolve_x_backward(grad, x, weight, part, mask)
    grad_levels = levels.new_empty(levels.shape if mask[1] else 0)
    pyramid_conv_levels_backward(grad, levels, weight, sizes, align_corners, x_first, grad_levels, grad_weight)
    return grad_x, grad_levels, grad_weight


CONV = Operator(
    "pyramid_conv",
    fake=_convolve_x,
    definition=_define,
    composition=composed.forward,
    composed=True,
    exported=composed.export,
    triton=_triton_forward,
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:3]),  # all but the bias
    gradient=_differentiate,
    lower_precision=True,
)
CONV_BACKWARD = Operator(
    "pyramid_conv_backward",
    fake=_fake_backward,
    composition=composed.backward,
    triton=_triton_backward,
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:4]),
    gradient=_differentiate_again,
)
CONV_NORM_RELU = Operator(
    "pyramid_conv_norm_relu",
    fake=_convolve_x,
    definition=_define,
    composition=composed.forward,
    recorded=_behind(pyramid_conv),
    composed=True,
    exported=composed.export,
    triton=_triton_forward,
    lower_precision=True,
)
