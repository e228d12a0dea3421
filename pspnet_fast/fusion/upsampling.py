"""Bilinear ``F.interpolate`` with a deferred result, and its gradient from low-resolution gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.deferred import Deferred, form_of, look, wrap
from pspnet_fast.fusion.projection import Projection
from pspnet_fast.fusion.report import Session
from pspnet_fast.fusion.segments import Geometry, Resize, Segment, pair
from pspnet_fast.layout import format_of, suggests_channels_last
from pspnet_fast.ops.upsample_add import ADD_BACKWARD


def interpolate(session: Session, input: Any = None, *args: Any, **keywords: Any) -> Any:
    """``F.interpolate`` with a deferred result, or NotImplemented where it must run as it stands."""
    try:
        call = Resize(*args, **keywords)
    except TypeError:
        return NotImplemented
    x = input
    reason, geometry = _resolve(x, call)
    if geometry is not None and geometry.low == geometry.full:
        if isinstance(x, Deferred) and x.cell.fusable:
            return torch.clone(x)  # an interpolation to the same size copies
        reason, geometry = f"{geometry.low} to {geometry.full} is no enlargement", None
        projection = session.projections.of(x)
        if projection is not None:
            session.refused("interpolate", reason)
            with torch._C.DisableTorchFunction():
                y = F.interpolate(x, *call)
            session.projections.note_copy(y, projection)
            return y
    if geometry is None:
        if reason:
            session.refused("interpolate", reason)
        return NotImplemented
    session.fused("interpolate", "deferred")
    if isinstance(x, Deferred):
        x = look(x, expose=False)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(autocast_dtype(x.device, x.dtype, torch.get_autocast_dtype(x.device.type)))
    with torch._C.DisableTorchFunction():
        # What is made without gradients may be adopted by a graph, as the outputs of a checkpointed function are.
        wanted = x.requires_grad or not torch.is_grad_enabled()
        result: Deferred = _Upsample.apply(x, call, geometry, session, wanted, session.projections.of(x))
    return result


def _resolve(x: Any, call: Resize) -> tuple[str | None, Geometry | None]:
    """``(None, geometry)`` if ``call`` of ``x`` is bilinear and makes nothing smaller, else the reason why not."""
    if call.mode != "bilinear" or call.antialias:
        return f"mode={call.mode!r}, antialias={bool(call.antialias)}: only bilinear upsampling is fused", None
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or x.numel() == 0 or x.is_meta:
        return None, None
    if isinstance(x, Deferred) and x.cell.exposed:
        return "the map was changed, or is viewed", None
    if type(x) not in (Tensor, torch.nn.Parameter, Deferred):
        return f"the map is a {type(x).__name__}, not a plain tensor", None
    if (call.size is None) == (call.scale_factor is None) or call.recompute_scale_factor:
        return "recompute_scale_factor", None
    height, width = int(x.shape[2]), int(x.shape[3])
    factors = pair(call.size if call.scale_factor is None else call.scale_factor)
    if factors is None:
        return None, None
    if call.scale_factor is None:
        full = int(factors[0]), int(factors[1])
    else:
        full = int(height * factors[0]), int(width * factors[1])
        # Unless corners are aligned, PyTorch uses the given factor and not the ratio of the sizes.
        if not call.align_corners and full != (height * factors[0], width * factors[1]):
            return f"scale_factor={call.scale_factor} does not give whole sizes of {height}x{width}", None
    if full[0] < height or full[1] < width:
        return f"{(height, width)} to {full} is no enlargement", None
    return None, Geometry((height, width), full, bool(call.align_corners))


@functools.cache
def autocast_dtype(device: torch.device, dtype: torch.dtype, _: torch.dtype) -> torch.dtype:
    """What this autocast, whose own dtype is the last argument, upsamples a map of ``dtype`` in.

    Its rules differ by device and version: a pixel shows them.
    """
    pixel = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
    with torch._C.DisableTorchFunction():
        return F.interpolate(pixel, size=(1, 1), mode="bilinear").dtype


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, call: Resize, geometry: Geometry, session: Session, wanted: bool, given: Projection | None
    ) -> Deferred:
        low = x.detach()
        ctx.geometry, ctx.scale_factor = geometry, call.scale_factor
        return upsampled(Segment(low, geometry, wanted, given), session, functools.partial(F.interpolate, low, *call))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return pull(grad, ctx.geometry, ctx.scale_factor), None, None, None, None, None


def upsampled(segment: Segment, session: Session, build: Callable[[], Tensor]) -> Deferred:
    """The deferred map of one low-resolution map."""
    low, geometry = segment.tensor, segment.geometry
    assert geometry is not None
    cell = Cell(build, [segment], session, site=session.site())
    layout = format_of(suggests_channels_last(low))  # which F.interpolate gives its result
    full = torch.empty((*low.shape[:2], *geometry.full), dtype=low.dtype, device="meta", memory_format=layout)
    return wrap(cell, form_of(full), low.device)


def pull(grad: Tensor, geometry: Geometry, scale_factor: Any = None) -> Tensor:
    """The gradient of a low-resolution map from that of its upsampling, which may have been given a scale factor."""
    cell = grad.cell if isinstance(grad, Deferred) else None
    known = cell is not None and cell.adjoint and cell.kind == "map" and cell.fusable and not torch.is_grad_enabled()
    segments = cell.segments if cell is not None and known else []
    if not segments or any(s.geometry not in (None, geometry) for s in segments):
        return _adjoint(grad, geometry, scale_factor)
    parts = [s.tensor if s.geometry == geometry else _adjoint(s.tensor, geometry, scale_factor) for s in segments]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(grad.dtype)


def _adjoint(grad: Tensor, geometry: Geometry, scale_factor: Any) -> Tensor:
    # PyTorch's gradient on a GPU adds atomically: slowly where many pixels meet in a bin, in a new order every time.
    if grad.device.type == "cuda" and ADD_BACKWARD.backend(grad) != "reference":
        levels: Tensor = ADD_BACKWARD(grad, list(geometry.low), geometry.align_corners)
        return levels.unflatten(2, geometry.low)
    shape = [*grad.shape[:2], *geometry.low]
    if torch.are_deterministic_algorithms_enabled() and grad.device.type != "cpu":
        # F.interpolate takes operators with a deterministic gradient then.
        with torch.enable_grad():
            x = torch.zeros(shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
            size = geometry.full if scale_factor is None else None
            y = F.interpolate(x, size, scale_factor, mode="bilinear", align_corners=geometry.align_corners)
        return torch.autograd.grad(y, x, grad, create_graph=torch.is_grad_enabled())[0]
    options = list(geometry.full), shape, geometry.align_corners, *(pair(scale_factor) or (None, None))
    result: Tensor = torch.ops.aten.upsample_bilinear2d_backward(grad, *options)
    return result
