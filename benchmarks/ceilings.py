"""What this machine can do at best, measured in the same run: memory bandwidth and the rate of matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.measure import interleaved


@dataclass(frozen=True)
class Ceilings:
    """Gigabytes a second (a copy's read and written bytes both count), and GFLOP a second by dtype."""

    copy: float
    read: float
    float32: float
    bfloat16: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Floor:
    """The least that any implementation must do: every input read once, every result written once, the arithmetic.

    Attributes:
        bytes: to and from memory.
        flops: two for each multiply-add; a lone multiplication, addition or comparison takes the slot of one.
        rate: the dtype whose matrix rate bounds the arithmetic, "float32" or "bfloat16".
    """

    bytes: int
    flops: int
    rate: str = "float32"

    def milliseconds(self, ceilings: Ceilings) -> float:
        """The longer of the two times."""
        return max(self.memory_milliseconds(ceilings), self.arithmetic_milliseconds(ceilings))

    def memory_milliseconds(self, ceilings: Ceilings) -> float:
        return self.bytes / ceilings.copy / 1e6

    def arithmetic_milliseconds(self, ceilings: Ceilings) -> float:
        rate = ceilings.bfloat16 if self.rate == "bfloat16" else ceilings.float32
        return self.flops / rate / 1e6


def measure_ceilings(device: str, *, quick: bool = False, rounds: int = 9) -> Ceilings:
    """Copy and read 256 MB (2 GB on a GPU), and multiply large random matrices. ``quick``: a fiftieth of that."""
    gpu = device == "cuda"
    elements = (1 << 29 if gpu else 1 << 26) // (50 if quick else 1)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    size = (8192 if gpu else 1536) // (4 if quick else 1)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source), "read": source.sum}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        runs[str(dtype).removeprefix("torch.")] = functools.partial(torch.matmul, a, b)

    # The 20th percentile: another process's disturbance must not lower what the machine can do.
    milliseconds = {name: timing.p20 for name, timing in interleaved(runs, rounds, device).items()}
    flops, moved = 2 * size**3, elements * source.element_size()
    return Ceilings(
        copy=round(2 * moved / milliseconds["copy"] / 1e6, 1),
        read=round(moved / milliseconds["read"] / 1e6, 1),
        float32=round(flops / milliseconds["float32"] / 1e6, 1),
        bfloat16=round(flops / milliseconds["bfloat16"] / 1e6, 1),
    )
