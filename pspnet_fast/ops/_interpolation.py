"""Bilinear interpolation as small matrices: upsampling an axis from k to n cells is a product by ``[n, k]``."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=256)
def tap_matrix(n: int, k: int, align_corners: bool, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each tap of a convolution of odd width ``taps`` reads of an axis upsampled from ``k`` to ``n`` cells.

    Returns:
        ``[n, taps, k]``: entry ``(y, t, i)`` is the weight of cell ``i`` at output position ``y + t - taps // 2``, and
        zero where that position lies in the zero padding. With ``taps=1`` this is upsampling itself.
    """
    position = torch.arange(n, dtype=torch.float64)
    if align_corners:
        source = position * ((k - 1) / (n - 1) if n > 1 else 0.0)
    else:
        source = ((position + 0.5) * (k / n) - 0.5).clamp(0, k - 1)
    # A hat of width one round the source position is the pair of bilinear weights, (1 - t) and t.
    up = (1 - (source.unsqueeze(1) - torch.arange(k, dtype=torch.float64)).abs()).clamp(min=0)

    padded = torch.nn.functional.pad(up, (0, 0, taps // 2, taps // 2))
    windows = torch.stack([padded[t : t + n] for t in range(taps)], dim=1)
    return windows.to(device=device, dtype=dtype)


def upsample_adjoint(grad: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """The gradient of bilinear upsampling from ``height x width``: gathers ``grad [..., H, W]``, without atomics."""
    rows = tap_matrix(grad.shape[-2], height, align_corners, 1, grad.dtype, grad.device).squeeze(1)
    columns = tap_matrix(grad.shape[-1], width, align_corners, 1, grad.dtype, grad.device).squeeze(1)
    return rows.mT @ (grad @ columns)
