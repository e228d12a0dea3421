"""Bilinear ``F.interpolate`` with a deferred result, and its gradient from low-resolution gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.deferred import Deferred, form_of, look, wrap
from pspnet_fast.fusion.gradients import pull
from pspnet_fast.fusion.projection import Projection
from pspnet_fast.fusion.report import Session
from pspnet_fast.fusion.segments import Geometry, Segment, pair
from pspnet_fast.layout import format_of, suggests_channels_last

_SIGNATURE = inspect.signature(F.interpolate)


def interpolate(session: Session, *args: Any, **kwargs: Any) -> Any:
    """``F.interpolate`` with a deferred result, or NotImplemented where it must run as it stands."""
    try:
        call = _SIGNATURE.bind(*args, **kwargs).arguments
    except TypeError:
        return NotImplemented
    x = call.pop("input")
    reason, geometry = resolve(x, **call)
    if geometry is not None and geometry.low == geometry.full:
        if isinstance(x, Deferred) and x.cell.fusable:
            return torch.clone(x)  # an interpolation to the same size copies
        reason, geometry = f"{geometry.low} to {geometry.full} is no enlargement", None
        projection = session.projections.of(x)
        if projection is not None:
            session.refused("interpolate", reason)
            with torch._C.DisableTorchFunction():
                y = F.interpolate(x, **call)
            session.projections.note_copy(y, projection)
            return y
    if geometry is None:
        if reason:
            session.refused("interpolate", reason)
        return NotImplemented
    session.fused("interpolate", "deferred")
    return upsample(x, call, geometry, session)


def upsample(x: Tensor, call: dict[str, Any], geometry: Geometry, session: Session) -> Any:
    """``F.interpolate(x, **call)``, deferred."""
    if isinstance(x, Deferred):
        x = look(x, expose=False)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(autocast_dtype(x.device, x.dtype, torch.get_autocast_dtype(x.device.type)))
    with torch._C.DisableTorchFunction():
        # What is made without gradients may be adopted by a graph, as the outputs of a checkpointed function are.
        wanted = x.requires_grad or not torch.is_grad_enabled()
        result: Deferred = _Upsample.apply(x, call, geometry, session, wanted, session.projections.of(x))
    return result


def resolve(
    x: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> tuple[str | None, Geometry | None]:
    """``(None, geometry)`` if ``F.interpolate`` is bilinear and makes nothing smaller, else the reason why not."""
    if mode != "bilinear" or antialias:
        return f"mode={mode!r}, antialias={bool(antialias)}: only bilinear upsampling is fused", None
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or x.numel() == 0 or x.is_meta:
        return None, None
    if isinstance(x, Deferred) and x.cell.exposed:
        return "the map was changed, or is viewed", None
    if type(x) not in (Tensor, torch.nn.Parameter, Deferred):
        return f"the map is a {type(x).__name__}, not a plain tensor", None
    if (size is None) == (scale_factor is None) or recompute_scale_factor:
        return "recompute_scale_factor", None
    height, width = int(x.shape[2]), int(x.shape[3])
    factors = pair(size if scale_factor is None else scale_factor)
    if factors is None:
        return None, None
    if scale_factor is None:
        full = int(factors[0]), int(factors[1])
    else:
        full = int(height * factors[0]), int(width * factors[1])
        # Unless corners are aligned, PyTorch uses the given factor and not the ratio of the sizes.
        if not align_corners and full != (height * factors[0], width * factors[1]):
            return f"scale_factor={scale_factor} does not give whole sizes of {height}x{width}", None
    if full[0] < height or full[1] < width:
        return f"{(height, width)} to {full} is no enlargement", None
    return None, Geometry((height, width), full, bool(align_corners))


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
        ctx: Any,
        x: Tensor,
        call: dict[str, Any],
        geometry: Geometry,
        session: Session,
        wanted: bool,
        projection: Projection | None,
    ) -> Deferred:
        low = x.detach()
        ctx.shape, ctx.dtype, ctx.device = low.shape, low.dtype, low.device
        ctx.geometry, ctx.call = geometry, call
        build = functools.partial(F.interpolate, low, **call)
        return upsampled(Segment(low, geometry, wanted, projection), session, build)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return pull(grad, ctx.geometry, ctx.shape, ctx.dtype, ctx.device, ctx.call), None, None, None, None, None


def upsampled(segment: Segment, session: Session, build: Callable[[], Tensor]) -> Deferred:
    """The deferred map of one low-resolution map."""
    low, geometry = segment.tensor, segment.geometry
    assert geometry is not None
    cell = Cell(build, [segment], session, site=session.site())
    layout = format_of(suggests_channels_last(low))  # which F.interpolate gives its result
    full = torch.empty((*low.shape[:2], *geometry.full), dtype=low.dtype, device="meta", memory_format=layout)
    return wrap(cell, form_of(full), low.device)
