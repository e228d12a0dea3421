"""Bilinear interpolation as products by small matrices, see geometry.tap_matrix."""

from __future__ import annotations

from torch import Tensor

from pspnet_fast.geometry import tap_matrix


def upsample_adjoint(grad: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """The gradient of bilinear upsampling from ``height x width``: gathers ``grad [..., H, W]``, without atomics."""
    rows = tap_matrix(grad.shape[-2], height, align_corners, 1, grad.dtype, grad.device).squeeze(1)
    columns = tap_matrix(grad.shape[-1], width, align_corners, 1, grad.dtype, grad.device).squeeze(1)
    return rows.mT @ (grad @ columns)
