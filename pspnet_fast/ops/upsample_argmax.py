"""The predicted label of every pixel from low-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops.checks import LABEL_DTYPES, check_map, check_size
from pspnet_fast.ops.operator import Operator


def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, align_corners: bool = True, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Arg-max over classes of bilinearly upsampled logits, for inference.

    Args:
        logits: ``[B, C, h, w]``, floating-point; interpolated in float32 at least.
        size: ``(H, W)`` of the label map, 1 to 2^24 each.
        align_corners: as in ``torch.nn.functional.interpolate``.
        dtype: of the labels: int64, int32, or uint8 (at most 256 classes).

    Returns:
        ``[B, H, W]`` of ``dtype``. Where classes tie, the lowest index; a NaN logit wins, as in ``torch.argmax``.

    Raises:
        ValueError, TypeError: a bad shape, size or dtype, or more classes than ``dtype`` holds.

    Not differentiable.
    """
    check_map("logits", logits)
    check_size(size)
    if dtype not in LABEL_DTYPES:
        raise TypeError(f"dtype must be torch.int64, torch.int32 or torch.uint8, not {dtype}")
    if dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(f"dtype uint8 holds 256 classes, but logits have {logits.shape[1]}; use dtype=torch.int32")
    labels: Tensor = ARGMAX(logits.detach(), *size, align_corners, dtype)
    return labels


def _define(logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    return reference.upsample_argmax(logits, (height, width), align_corners=align_corners, dtype=dtype)


def _argmax(logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    # Image by image, so that full-resolution logits exist for one at a time.
    labels = logits.new_empty((logits.shape[0], height, width), dtype=dtype)
    for image, out in zip(logits.split(1), labels.split(1), strict=True):
        out.copy_(_define(image, height, width, align_corners, dtype))
    return labels


ARGMAX = Operator(
    "upsample_argmax",
    fake=lambda logits, height, width, _, dtype: logits.new_empty((logits.shape[0], height, width), dtype=dtype),
    definition=_define,
    composition=_argmax,
    composed=True,
    triton="upsample_argmax:upsample_argmax",
)
