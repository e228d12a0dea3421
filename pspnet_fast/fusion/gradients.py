"""The gradient of a low-resolution map from that of its upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast.fusion.deferred import Deferred
from pspnet_fast.fusion.segments import Geometry, pair
from pspnet_fast.ops.upsample_add import ADD_BACKWARD


def pull(
    grad: Tensor,
    geometry: Geometry,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    call: dict[str, Any],
) -> Tensor:
    """The gradient of a low-resolution map of ``shape`` from that of the upsampled one."""
    cell = grad.cell if isinstance(grad, Deferred) else None
    known = cell is not None and cell.adjoint and cell.kind == "map" and cell.fusable and not torch.is_grad_enabled()
    segments = cell.segments if cell is not None and known else []
    if not segments or any(s.geometry not in (None, geometry) for s in segments):
        return _adjoint(grad, shape, dtype, device, call, geometry)
    parts = [
        s.tensor
        if s.geometry == geometry
        else _adjoint(s.tensor, (shape[0], s.channels, *shape[2:]), dtype, device, call, geometry)
        for s in segments
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(dtype)


def _adjoint(
    grad: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    call: dict[str, Any],
    geometry: Geometry,
) -> Tensor:
    # PyTorch's gradient on a GPU adds atomically: slowly where many pixels meet in a bin, in a new order every time.
    if device.type == "cuda" and ADD_BACKWARD.backend(grad) != "reference":
        levels: Tensor = ADD_BACKWARD(grad, list(geometry.low), geometry.align_corners)
        return levels.unflatten(2, geometry.low)
    if torch.are_deterministic_algorithms_enabled() and device.type != "cpu":
        # F.interpolate takes operators with a deterministic gradient then.
        with torch.enable_grad():
            x = torch.zeros(*shape, dtype=dtype, device=device, requires_grad=True)
            y = F.interpolate(x, **call)
        return torch.autograd.grad(y, x, grad, create_graph=torch.is_grad_enabled())[0]
    scale = call.get("scale_factor")
    scales = (None, None) if scale is None else pair(scale)
    options = list(geometry.full), list(shape), geometry.align_corners, *(scales or (None, None))
    result: Tensor = torch.ops.aten.upsample_bilinear2d_backward(grad, *options)
    return result
