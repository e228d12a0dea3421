"""Tables of indices on their way to the device: made once on the host, copied for each call on the call's own stream.

No table stays on the device. One that did would be unsafe on another stream than that of its copy; one made while a
CUDA graph is captured would lie in that graph's memory, and hold nothing before a replay.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
ALIGNMENT = 256  # bytes, as of an allocation: Triton compiles another kernel for what is aligned less
_read_by_graphs: dict[int, Tensor] = {}  # by address


@dataclass(frozen=True)
class HostTables(Generic[T]):
    """A dataclass whose tensors are parts of one block of host memory.

    Attributes:
        tables: the dataclass, on the host.
        memory: ``[bytes]`` uint8; page-locked where there is a GPU.
        begins: where in it each of the tensors begins, by name.
    """

    tables: T
    memory: Tensor
    begins: dict[str, int]

    def on(self, device: torch.device) -> T:
        """The dataclass with its tensors in new memory on ``device``, copied without synchronisation."""
        if is_captured(device):
            _read_by_graphs[self.memory.data_ptr()] = self.memory  # every replay copies from it
        memory = torch.empty_like(self.memory, device=device).copy_(self.memory, non_blocking=True)
        return _parts(self.tables, memory, self.begins)


def host_tables(tables: T) -> HostTables[T]:
    """``tables``, a dataclass of numbers and CPU tensors, ready to be copied to devices."""
    tensors = _tensors(tables)
    sizes = [-(-t.numel() * t.element_size() // ALIGNMENT) * ALIGNMENT for t in tensors.values()]
    begins = dict(zip(tensors, accumulate([0, *sizes]), strict=False))
    # A capture may refuse to lock pages, but takes copies from memory that is not locked; outside it they would wait.
    locked = torch.cuda.is_available() and not is_captured(torch.device("cuda"))
    memory = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu", pin_memory=locked)
    parts = _parts(tables, memory, begins)
    for name, tensor in _tensors(parts).items():
        tensor.copy_(tensors[name])
    return HostTables(parts, memory, begins)


def is_captured(device: torch.device) -> bool:
    """Whether what is called on ``device`` now becomes part of a CUDA graph."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device.index):
        return torch.cuda.is_current_stream_capturing()


def _tensors(tables: Any) -> dict[str, Tensor]:
    values = {field.name: getattr(tables, field.name) for field in fields(tables)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _parts(tables: T, memory: Tensor, begins: dict[str, int]) -> T:
    """``tables`` with its tensors as parts of ``memory``, whatever that holds."""
    parts = {}
    for name, like in _tensors(tables).items():
        raw = memory.narrow(0, begins[name], like.numel() * like.element_size())
        parts[name] = raw.view(like.dtype).view(like.shape)
    return replace(tables, **parts)  # type: ignore[type-var]
