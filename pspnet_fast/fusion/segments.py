"""What a map consists of: channels at full resolution, and low-resolution maps with their upsampling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast.fusion.projection import Projection


class Geometry(NamedTuple):
    """A bilinear upsampling: sizes ``(h, w)`` before and after it, and where its corners are."""

    low: tuple[int, int]
    full: tuple[int, int]
    align_corners: bool


class Resize(NamedTuple):
    """The arguments of ``F.interpolate`` behind its input."""

    size: Any = None
    scale_factor: Any = None
    mode: str = "nearest"
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None
    antialias: bool = False


@dataclass(frozen=True)
class Segment:
    """Some channels of a map: ``tensor [B, c, *geometry.low]``, or the map itself where geometry is None.

    In a gradient, ``tensor`` is the gradient of the low-resolution map. ``projection``: what ``tensor`` was computed
    from, if that is known.
    """

    tensor: Tensor
    geometry: Geometry | None
    requires_grad: bool
    projection: Projection | None = None

    @property
    def channels(self) -> int:
        return self.tensor.shape[1]

    @property
    def memory(self) -> Sequence[Tensor]:
        """The tensors that fused operators read."""
        return (self.tensor,) if self.projection is None else (self.tensor, self.projection.x)

    def to(self, dtype: torch.dtype) -> Segment:
        if self.tensor.dtype == dtype:
            return self
        return Segment(self.tensor.to(dtype), self.geometry, self.requires_grad)

    def narrow(self, start: int, stop: int) -> Segment:
        if (start, stop) == (0, self.channels):
            return self
        return Segment(self.tensor[:, start:stop], self.geometry, self.requires_grad)


def version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """Which memory ``tensor`` has, or the one that transforms of ``torch.func`` have wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    number: int = tensor.untyped_storage()._cdata
    return number


@contextlib.contextmanager
def stock_operators() -> Iterator[None]:
    """Nothing is deferred, recorded, transformed or cast in here, and the results serve any mode."""
    with contextlib.ExitStack() as stack:
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch._C._DisableFuncTorch())
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


def under_this_autocast(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """``function`` as it would run now: backward may call it under another autocast, or none."""
    if not torch.amp.is_autocast_available(device_type):
        return function
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)

    def run(*args: Any) -> Any:
        with torch.autocast(device_type, dtype, enabled, cache_enabled=False):
            return function(*args)

    return run


def enlargement(
    low: Sequence[int], full: Sequence[int], call: Resize, known: Callable[[Any], bool] = bool
) -> Geometry | None:
    """The geometry of ``call`` from shape ``low`` to ``full`` if it is bilinear and makes nothing smaller.

    None as well where PyTorch uses a scale factor that is not the ratio of the sizes. ``known`` says whether a
    comparison of sizes, which may be symbols, holds.
    """
    if call.mode != "bilinear" or call.antialias:
        return None
    height, width = low[2:]
    if call.scale_factor is not None and not call.align_corners:
        # PyTorch uses the factor itself then: the same where it gives whole sizes.
        factors = pair(call.scale_factor)
        if factors is None or call.recompute_scale_factor:
            return None
        if not (known(height * factors[0] == full[2]) and known(width * factors[1] == full[3])):
            return None
    if not (known(height <= full[2]) and known(width <= full[3])):
        return None
    return Geometry((height, width), (full[2], full[3]), bool(call.align_corners))


def enlarge(low: Tensor, geometry: Geometry) -> Tensor:
    """``low``, upsampled by the stock operator."""
    return F.interpolate(low, geometry.full, mode="bilinear", align_corners=geometry.align_corners)


def assemble(segments: Sequence[Segment], kind: str) -> Tensor:
    """The values that ``segments`` describe, by stock operators."""
    maps = [s.tensor if s.geometry is None else enlarge(s.tensor, s.geometry) for s in segments]
    full = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
    return full if kind == "map" else getattr(torch, kind)(full, dim=1)


def pair(value: Any) -> tuple[float, float] | None:
    """A size or a factor for height and width; None for what is neither."""
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    return values if len(values) == 2 and all(isinstance(v, (int, float)) for v in values) else None
