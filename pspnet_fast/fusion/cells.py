"""What a deferred tensor holds: how its values are built, and the low-resolution maps that they are made of.

A :class:`Cell` is the storage of a deferred tensor. Tensors that would share memory (``x`` and ``x.detach()``) share a
cell, so a write to one is seen by the other. Its channels are a list of :class:`Segment`: maps at full resolution, and
low-resolution maps with the geometry of their bilinear upsampling. Fused operators read the segments; everything else
reads ``materialise()``, which runs the stock operators once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.fusion.segments import Segment, stock_operators, storage_of, version
from pspnet_fast.layout import same_layout

# Cells of maps, so that a write to what they are made of can be noticed in time.
LIVE: weakref.WeakValueDictionary[int, Cell] = weakref.WeakValueDictionary()
_MOST_LOOKED_AT = 16  # cells; more would take longer than what knowing about them saves


@dataclass(eq=False, repr=False)
class Cell:
    """The storage of a deferred tensor; see the module's docstring.

    Attributes:
        build: gives the values, by stock operators, until they are kept.
        segments: what the channels consist of; empty where no fused operator can use them.
        session: the options and the report of the ``fuse()`` that it comes from.
        bases: the cells that ``build`` reads.
        view: whether the values are a view of the only base's.
        kind: "map", or "softmax" and "log_softmax" of the map that the segments describe.
        adjoint: whether this is a gradient of a map of that kind.
        site: the call that made it, for the report.
    """

    build: Callable[[], Tensor] | None
    segments: Sequence[Segment]
    session: Any
    bases: Sequence[Cell] = ()
    view: bool = False
    kind: str = "map"
    adjoint: bool = False
    site: str | None = None

    def __post_init__(self) -> None:
        self.value: Tensor | None = None
        self.strides: tuple[int, ...] = ()
        self.exposed = False
        self._versions = [version(s.tensor) for s in self.segments]
        self._maps = [base for base in self.bases if base.fusable]
        self._dependants: list[weakref.ref[Cell]] = []
        for base in self.bases:
            base._dependants.append(weakref.ref(self))
        if not self.adjoint:
            LIVE[id(self)] = self

    @property
    def _unchanged(self) -> bool:
        return not self.segments or [version(s.tensor) for s in self.segments] == self._versions

    @property
    def intact(self) -> bool:
        """Whether the tensors of the segments still hold what they held."""
        return self._unchanged and all(base.intact for base in self._maps)

    @property
    def readable(self) -> bool:
        return self.value is not None or (self._unchanged and all(base.readable for base in self.bases))

    @property
    def fusable(self) -> bool:
        """Whether the segments describe the values."""
        return bool(self.segments) and not self.exposed and self.intact

    def peek(self) -> Tensor:
        """The values; computed, but not kept, where they are not built."""
        if self.value is not None:
            return self.value
        if not self.readable or self.build is None:
            raise RuntimeError(
                "a tensor was modified in place outside pspnet_fast.fuse() after it had been upsampled or concatenated "
                "there and before the result was read; modify a copy, or do it before, or inside fuse()"
            )
        with stock_operators():
            value = self.build()
        if self.strides and not same_layout(value, self.strides):
            value = torch.empty_strided(value.shape, self.strides, dtype=value.dtype, device=value.device).copy_(value)
        return value

    def materialise(self) -> Tensor:
        """The values, kept from now on."""
        if self.value is None:
            self.value = self.peek()
            self.build = None
            if not self.segments or any(s.geometry is None for s in self.segments):
                self.segments = []  # full-resolution maps are not kept twice
                if not self.view:
                    self.bases, self._maps = (), []
        return self.value

    def expose(self) -> None:
        """The values are going to be written to, or handed out as a view that may be: nothing may be derived later."""
        top = self
        while top.view:
            top = top.bases[0]
        top._expose()

    def _expose(self) -> None:
        self.exposed = True
        if self.value is not None:
            before_write([self.value])
        cells = [cell for cell in (reference() for reference in self._dependants) if cell is not None]
        if any(cell.value is None for cell in cells):
            self.materialise()
        for cell in cells:
            if cell.view:
                cell._expose()
            else:
                cell.materialise()


def before_write(tensors: Sequence[Tensor]) -> None:
    """``tensors`` are about to be written to: build every cell that is made of their memory."""
    if not tensors:
        return
    storages = {storage_of(t) for t in tensors if type(t) in (Tensor, torch.nn.Parameter)}
    for cell in list(LIVE.values()):
        if any(storage_of(t) in storages for s in cell.segments for t in s.memory):
            cell.materialise()
            cell.segments = []


def may_be_written() -> bool:
    """Whether a deferred tensor is made of memory that another tensor has as well."""
    if len(LIVE) > _MOST_LOOKED_AT:
        return True
    segments = [s for cell in list(LIVE.values()) for s in cell.segments]
    with torch._C.DisableTorchFunction():
        # Two owners are the segment's tensor and the Python object of its storage, which this call makes.
        return any(torch._C._storage_Use_Count(s.tensor.untyped_storage()._cdata) > 2 for s in segments)
