"""What this machine can do at best, measured in the same run: memory bandwidth and the rate of arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

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
        rate: the dtype whose rate bounds the arithmetic, "float32" or "bfloat16".
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
    """Copy and read 256 MB (2 GB on a GPU), and do arithmetic both ways that torch has. ``quick``: a fiftieth of that.

    A dtype's rate is the better of a large matrix product and a 3×3 convolution: different libraries compute them, and
    on CPUs that one of them does not know it stays at half of what the machine can do.
    """
    gpu = device == "cuda"
    elements = (1 << 29 if gpu else 1 << 26) // (50 if quick else 1)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source), "read": source.sum}
    flops: dict[str, int] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, (run, count) in _arithmetic(dtype, device, quick=quick).items():
            runs[name], flops[name] = run, count

    # The 20th percentile: another process's disturbance must not lower what the machine can do.
    milliseconds = {name: timing.p20 for name, timing in interleaved(runs, rounds, device).items()}
    moved = elements * source.element_size()
    rates = {name: count / milliseconds[name] / 1e6 for name, count in flops.items()}

    def best(dtype: str) -> float:
        return round(max(rate for name, rate in rates.items() if name.startswith(dtype)), 1)

    return Ceilings(
        copy=round(2 * moved / milliseconds["copy"] / 1e6, 1),
        read=round(moved / milliseconds["read"] / 1e6, 1),
        float32=best("float32"),
        bfloat16=best("bfloat16"),
    )


def _arithmetic(dtype: torch.dtype, device: str, *, quick: bool) -> dict[str, tuple[Callable[[], object], int]]:
    """A product of square matrices and a convolution, each with its FLOP."""
    gpu, name = device == "cuda", str(dtype).removeprefix("torch.")
    size = (8192 if gpu else 1536) // (4 if quick else 1)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    batch, channels, side = (16 if gpu else 1, 512, 64) if not quick else (1, 128, 32)
    x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return {
        f"{name} product": (functools.partial(torch.matmul, a, b), 2 * size**3),
        f"{name} convolution": (
            functools.partial(F.conv2d, x, weight, padding=1),
            2 * batch * side**2 * 9 * channels**2,
        ),
    }
