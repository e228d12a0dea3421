"""The predicted label of every pixel from low-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.backend import select
from pspnet_fast.ops._checks import LABEL_DTYPES, check_map
from pspnet_fast.ops._library import (
    overload,
    register,
    register_autocast,
    register_composition,
    register_triton,
    suffix,
)


def upsample_argmax(
    logits: Tensor, size: Sequence[int], *, align_corners: bool = True, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Arg-max over classes of bilinearly upsampled logits, for inference.

    Args:
        logits: ``[B, C, h, w]``, floating-point; interpolated in float32 at least.
        size: ``(H, W)`` of the label map, at least 1 each.
        align_corners: as in ``torch.nn.functional.interpolate``.
        dtype: of the labels: int64, int32, or uint8 (at most 256 classes).

    Returns:
        ``[B, H, W]`` of ``dtype``. Where classes tie, the lowest index; a NaN logit wins, as in ``torch.argmax``.

    Raises:
        ValueError, TypeError: a bad shape, size or dtype, or more classes than ``dtype`` holds.

    Not differentiable.
    """
    check_map("logits", logits)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width) with both at least 1, not {tuple(size)}")
    if dtype not in LABEL_DTYPES:
        raise TypeError(f"dtype must be torch.int64, torch.int32 or torch.uint8, not {dtype}")
    if dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(f"dtype uint8 holds 256 classes, but logits have {logits.shape[1]}; use dtype=torch.int32")
    logits = logits.detach()
    backend = select("upsample_argmax", logits.device.type)
    if backend == "reference":
        return reference.upsample_argmax(logits, size, align_corners=align_corners, dtype=dtype)
    labels: Tensor = overload(f"upsample_argmax{suffix(backend)}")(logits, *size, align_corners, dtype)
    return labels


def _argmax(logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    # Image by image, so that full-resolution logits exist for one at a time.
    labels = logits.new_empty((logits.shape[0], height, width), dtype=dtype)
    for image, out in zip(logits.split(1), labels.split(1), strict=True):
        out.copy_(reference.upsample_argmax(image, (height, width), align_corners=align_corners, dtype=dtype))
    return labels


def _triton_argmax(logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    from pspnet_fast.triton import upsample_argmax as kernel

    return kernel.upsample_argmax(logits, height, width, align_corners, dtype)


def _fake_argmax(logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    return logits.new_empty((logits.shape[0], height, width), dtype=dtype)


register_composition("upsample_argmax", _argmax)
register_triton("upsample_argmax", _triton_argmax)
for _name in ("upsample_argmax", "upsample_argmax_triton"):
    register(_name, fake=_fake_argmax)
    register_autocast(_name)
