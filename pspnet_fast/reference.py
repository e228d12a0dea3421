"""The definition of every operator, in plain PyTorch.

Each function here is three things at once: the specification of the operator of the same name, the fallback where no
kernel is available, and the oracle of the tests (called with float64 inputs). They are written to be read, from stock
operators only, and run on any device and under autograd, autocast, ``torch.compile`` and ``torch.export``.

Packed levels
    A pyramid of ``k x k`` maps (one per entry of ``bins``) travels as one tensor ``[B, C, Σk²]``: level after level,
    each row-major. Where levels need not be square, an entry of ``bins`` may be their size ``(h, w)``.
    :func:`unpack_levels` gives the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Bin = int | Sequence[int]  # a level: the side of a square one, or (h, w)

DEFAULT_BINS = (1, 2, 3, 6)
DEFAULT_AUX_WEIGHT = 0.4  # λ of Zhao et al. 2017, section 3.3


class DualLoss(NamedTuple):
    """The losses of PSPNet (Zhao et al. 2017, section 3.3): ``loss = main + aux_weight * aux``."""

    loss: Tensor
    main: Tensor
    aux: Tensor


class DualPrediction(NamedTuple):
    """:class:`DualLoss`, and the main head's labels int64 ``[B, H, W]`` and number of correct pixels, where wanted."""

    loss: Tensor
    main: Tensor
    aux: Tensor
    labels: Tensor | None
    correct: Tensor | None


def level_sizes(bins: Sequence[Bin]) -> list[tuple[int, int]]:
    """``(h, w)`` of each entry of ``bins``: the side of a square level, or its size."""
    return [(k, k) if isinstance(k, int) else (k[0], k[1]) for k in bins]


def unpack_levels(levels: Tensor, bins: Sequence[Bin]) -> list[Tensor]:
    """Split packed levels ``[B, C, Σhw]`` into views ``[B, C, h, w]``, one per entry of ``bins``."""
    sizes = level_sizes(bins)
    parts = levels.split([h * w for h, w in sizes], dim=2)
    return [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


def pyramid_pool(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> Tensor:
    """Adaptive average pooling of ``x [B, C, H, W]`` to every size of ``bins``, packed ``[B, C, Σk²]``."""
    return torch.cat([F.adaptive_avg_pool2d(x, k).flatten(2) for k in bins], dim=2)


class NormStatistics(NamedTuple):
    """Batch normalisation in evaluation mode: ``gamma · (x - mean) / sqrt(var + eps) + beta``; each tensor ``[C]``."""

    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float


def pyramid_levels(
    x: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int] = DEFAULT_BINS
) -> Tensor:
    """The levels of ``x [B, C, H, W]``: :func:`pyramid_pool`, a 1x1 convolution, normalisation and ReLU at each."""
    return transform_levels(pyramid_pool(x, bins), weights, norms, bins)


def transform_levels(
    pooled: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int]
) -> Tensor:
    """A 1x1 convolution, normalisation and ReLU of each level of the packed ``pooled [B, C, Σk²]``, packed again."""
    levels = [
        norm_relu(F.conv2d(level, weight), norm).flatten(2)
        for level, weight, norm in zip(unpack_levels(pooled, bins), weights, norms, strict=True)
    ]
    return torch.cat(levels, dim=2)


def norm_relu(x: Tensor, norm: NormStatistics) -> Tensor:
    """Batch normalisation by given statistics, and ReLU."""
    return F.relu(F.batch_norm(x, norm.mean, norm.var, norm.gamma, norm.beta, training=False, eps=norm.eps))


def upsample(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """``x [B, C, h, w]`` upsampled bilinearly to ``size``, in its own dtype."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


def accumulation(x: Tensor) -> Tensor:
    """``x`` in the dtype that sums are taken in: float32 for the half precisions, else its own."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pyramid_concat(
    x: Tensor, levels: Tensor, bins: Sequence[Bin] = DEFAULT_BINS, align_corners: bool = True, x_first: bool = True
) -> Tensor:
    """``x [B, C, H, W]`` and the levels ``[B, Ck, Σhw]`` upsampled to ``H x W``, concatenated over channels."""
    ups = [upsample(level, x.shape[2:], align_corners) for level in unpack_levels(levels, bins)]
    return torch.cat([x, *ups] if x_first else [*ups, x], dim=1)


def pyramid_conv(x: Tensor, levels: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """Convolution ("same" zero padding, stride 1) of :func:`pyramid_concat` by ``weight [O, C + L·Ck, kh, kw]``."""
    merged = pyramid_concat(x, levels, **options)
    # int(): PyTorch's second derivative of a convolution takes no symbolic padding (torch.compile with dynamic shapes).
    padding = int(weight.shape[2]) // 2, int(weight.shape[3]) // 2
    return F.conv2d(merged, weight, bias, padding=padding)


def pyramid_conv_norm_relu(
    x: Tensor, levels: Tensor, weight: Tensor, norm: NormStatistics, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """:func:`pyramid_conv` (its ``options``), batch normalisation by given statistics, and ReLU."""
    return norm_relu(pyramid_conv(x, levels, weight, bias, **options), norm)


def upsample_cross_entropy(logits: Tensor, target: Tensor, *, align_corners: bool = True, **options: Any) -> Tensor:
    """:func:`cross_entropy` of ``logits [B, C, h, w]``, bilinearly upsampled to the size of ``target [B, H, W]``."""
    return cross_entropy(upsample(accumulation(logits), target.shape[1:], align_corners), target.long(), **options)


def cross_entropy(
    up: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: str | float = "valid",
    empty: str = "nan",
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of logits ``up [B, C, H, W]`` against int64 ``labels [B, H, W]``."""
    class_weight = None if weight is None else weight.to(up.dtype)
    loss = F.cross_entropy(
        up, labels, class_weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    if pixel_weight is not None:
        loss = loss * pixel_weight.to(loss.dtype)

    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if not isinstance(denominator, str):
        return loss.sum() / denominator
    divisor = loss_divisor(labels, class_weight, pixel_weight, ignore_index, up.dtype)
    if denominator == "all":
        divisor = torch.full_like(divisor, labels.numel())
    mean = loss.sum() / divisor.masked_fill(divisor == 0, 1)  # with zero gradient where nothing is left
    return mean.masked_fill(divisor == 0, torch.nan if empty == "nan" else 0.0)


def loss_divisor(
    labels: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """What ``denominator="valid"`` divides by, 0-d, as in ``torch.nn.CrossEntropyLoss``.

    The sum, over the pixels that are not ignored, of class weight times pixel weight; their number where neither is
    given.
    """
    valid = labels != ignore_index
    share = valid.to(dtype)
    if weight is not None:
        share = share * weight[labels.where(valid, 0)]
    if pixel_weight is not None:
        share = share * pixel_weight.to(dtype)
    return share.sum()


def dual_cross_entropy(
    main: Tensor, aux: Tensor, target: Tensor, *, aux_weight: float | Tensor = DEFAULT_AUX_WEIGHT, **options: Any
) -> DualLoss:
    """:func:`upsample_cross_entropy` of two heads against one target, and their weighted sum."""
    main_loss, aux_loss = (upsample_cross_entropy(logits, target, **options) for logits in (main, aux))
    return DualLoss(main_loss + aux_weight * aux_loss, main_loss, aux_loss)


def correct_pixels(labels: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The number of pixels whose label is that of ``target``, ignored ones left out; int64, 0-d."""
    truth = target.long()  # compared with a number that a uint8 cannot hold, that would wrap
    return ((labels == truth) & (truth != ignore_index)).sum()


def upsample_add(
    levels: Tensor,
    base: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    bins: Sequence[Bin],
    align_corners: bool = True,
    channels_last: bool = False,
) -> Tensor:
    """``base [B, C, H, W]``, where there is one, and the levels ``[B, C, Σhw]`` upsampled to ``size``, summed."""
    full = base.shape[2:] if base is not None else size or ()
    parts = [upsample(accumulation(level), full, align_corners) for level in unpack_levels(levels, bins)]
    total = parts[0] if base is None else accumulation(base) + parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(levels.dtype)


def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, align_corners: bool = True, dtype: torch.dtype = torch.int64
) -> Tensor:
    """The most likely class of every pixel: arg-max over classes of ``logits`` upsampled to ``size``."""
    return upsample(accumulation(logits), size, align_corners).argmax(dim=1).to(dtype)


class AxisTaps(NamedTuple):
    """One axis of ``n`` positions, each read from two positions of another: ``Σ_k weight[i, k] · x[position[i, k]]``.

    A position of weight 0 is not read, so that what is infinite there makes no NaN.
    """

    position: Tensor  # int32 [n, 2]
    weight: Tensor  # floating-point [n, 2]


def upsample_softmax_add(
    total: Tensor,
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = True,
    flip: bool = False,
    weight: float = 1.0,
    rows: AxisTaps | None = None,
    columns: AxisTaps | None = None,
) -> Tensor:
    """Adds ``weight`` times the softmax of ``logits`` upsampled to ``size`` to ``total``, in place.

    ``flip`` mirrors the upsampled map; then ``rows`` and ``columns`` read its rows and columns.
    """
    probabilities = upsample(accumulation(logits), size, align_corners).softmax(1)
    if flip:
        probabilities = probabilities.flip(3)
    for taps, dim in ((rows, 2), (columns, 3)):
        if taps is not None:
            probabilities = read_taps(probabilities, taps, dim)
    return total.add_(probabilities, alpha=weight)


def read_taps(x: Tensor, taps: AxisTaps, dim: int) -> Tensor:
    """``x [B, C, H, W]`` read along its axis ``dim`` by ``taps``."""
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    first, second = (
        (x.index_select(dim, position) * weight.view(shape)).where(weight.view(shape) != 0, 0)
        for position, weight in zip(taps.position.unbind(1), taps.weight.to(x.dtype).unbind(1), strict=True)
    )
    return first + second
