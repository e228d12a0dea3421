"""A benchmark case: one operator at one shape, the peers that compute it, and the least work that it takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MEMORIES = (8, 24, 80)  # in GB, of GPUs
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
Shape = tuple[int, ...]
Results = tuple[Tensor, ...]
Call = Callable[[], Results]
# What the machine reaches: "copy" in GB a second, read and written; "float32" and "bfloat16" in GFLOP a second.
Rates = Mapping[str, float]


def rounded(number: float, digits: int = 4) -> float:
    """To significant digits, as numbers stand in result files."""
    return float(f"{number:.{digits}g}")


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

    def milliseconds(self, rates: Rates) -> dict[str, float]:
        """The times of both at the machine's rates; the longer one is the floor."""
        memory, arithmetic = self.bytes / rates["copy"] / 1e6, self.flops / rates[self.rate] / 1e6
        return {"memory_milliseconds": rounded(memory), "arithmetic_milliseconds": rounded(arithmetic)}


@dataclass(frozen=True)
class Place:
    """Where a case runs, and in what: the dtype of maps and logits (a half precision: as autocast gives them)."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    layout: str = "NCHW"

    @property
    def dtype_name(self) -> str:
        """ "float32" rather than "torch.float32"."""
        return str(self.dtype).removeprefix("torch.")

    def labels(self, shape: str, *, backward: bool = True) -> dict[str, Any]:
        """What every case tells of itself."""
        direction = "forward + backward" if backward else "forward"
        return {"shape": shape, "dtype": self.dtype_name, "layout": self.layout, "direction": direction}

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        """Standard normal values, the same for every peer; 4-D ones in the layout."""
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(*shape, generator=generator, device=self.device).to(self.dtype)
        return x.contiguous(memory_format=LAYOUTS[self.layout]) if x.dim() == 4 else x

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast for a half precision, as a training loop has it; nothing for float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device, self.dtype)


@dataclass(frozen=True)
class Case:
    """What is measured together. Everything in it can be pickled, as peak memory is measured in new processes.

    Attributes:
        operator: what is computed.
        labels: what distinguishes this case from the operator's others, for its names and its row.
        device: "cpu" or "cuda".
        peers: who computes it; all others are compared with the first.
        build: prepares a peer (inputs, modules; every peer gets the same values) and returns the call to be timed,
            which returns everything that the peers must agree on. Also takes the names in ``parts``.
        floor: the least work.
        tolerance: the largest relative difference (Euclidean norm) from the first peer's results, or for labels the
            largest share of pixels that differ.
        compared: makes what is compared from what a call returns, outside the timing.
        parts: shares of the work, or plain memory traffic, timed in the same rounds for comparison; no peers.
        page_faults: whether a second measurement takes page faults out (see benchmarks/README.md).
        graph: whether, on a GPU, the replay of a CUDA graph is timed too.
        skipped: peers that are not run here, and why.
        needed_bytes: about what a peer takes; it is not run where less memory is available.
        threads: how many torch uses, where that is part of the case.
        processor_time: whether, on a CPU, the time is that which the processor spent on this process. For calls of one
            thread that is what they take on a machine to themselves, whoever else uses it.
        hoarding: peers that keep a call's memory for the next one, so that it is the first call's that is measured.
        batches: for whole networks, how the memory grows with the batch.
    """

    operator: str
    labels: Mapping[str, Any]
    device: str
    peers: tuple[str, ...]
    build: Callable[[str], Call]
    floor: Floor
    tolerance: float
    compared: Callable[[Results], Results] = tuple
    parts: tuple[str, ...] = ()
    page_faults: bool = False
    graph: bool = True
    skipped: Mapping[str, str] = field(default_factory=dict)
    needed_bytes: Mapping[str, int] = field(default_factory=dict)
    threads: int | None = None
    processor_time: bool = False
    hoarding: Collection[str] = ()
    batches: Batches | None = None

    @property
    def name(self) -> str:
        """The operator and its labels, for headings."""
        return ", ".join([self.operator, *map(str, self.labels.values())])

    @property
    def id(self) -> str:
        """The case in result files and on command lines, without blanks."""
        words = "/".join([self.operator, *map(str, self.labels.values()), self.device])
        for old, new in ((" -> ", "-"), (" + ", "+"), (", ", ","), (" ", "-")):
            words = words.replace(old, new)
        return words


@dataclass(frozen=True)
class Batches:
    """How a whole network's memory is measured over the batch.

    Attributes:
        at: makes the case at another batch.
        sizes: the two batches whose peak memory is measured.
        least: the smallest batch that can be run.
        weights_bytes: what lies in memory besides a call: parameters, running statistics, in training SGD's momentum.
        image_bytes: what lies in memory for each image: the image, in training its labels.
    """

    at: Callable[[int], Case]
    sizes: tuple[int, int]
    least: int
    weights_bytes: int
    image_bytes: int

    def largest(self, peaks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, int | None]]:
        """The largest batch in each of :data:`MEMORIES`, from every peer's peaks at both sizes.

        0 where not even the least batch fits, None where memory does not grow with the batch.
        """

        def within(limit: float, each: float, fixed: float) -> int | None:
            batch = int((limit - fixed - self.weights_bytes) // each) if each > 0 else None
            return 0 if batch is not None and batch < self.least else batch

        lines = {peer: line_through(at) for peer, at in peaks.items()}
        return {
            str(memory): {
                peer: within(memory * 1e9, each + self.image_bytes, fixed) for peer, (each, fixed) in lines.items()
            }
            for memory in MEMORIES
        }


def line_through(peaks: Mapping[str, float]) -> tuple[float, float]:
    """Bytes for each image, and what comes on top, from those at two batch sizes (the keys, as JSON has them)."""
    each, fixed = statistics.linear_regression([int(batch) for batch in peaks], list(peaks.values()))
    return each, fixed


def differentiated(function: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> Results:
    """The result of a function of the leaves, and their gradients."""
    result = function(*leaves)
    return result.detach(), *torch.autograd.grad(result, leaves, upstream)


def difference(actual: Results, expected: Results) -> float:
    """The largest difference of any result: relative in the Euclidean norm; for integers the share that differs."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        if not e.is_floating_point():
            error = (a != e).float().mean()
        else:
            error = torch.linalg.vector_norm(a.double() - e.double()) / torch.linalg.vector_norm(e.double())
        worst = max(worst, float(error.nan_to_num(nan=torch.inf)))
    return worst


def blocky_labels(batch: int, height: int, width: int, classes: int, device: str = "cpu") -> Tensor:
    """Labels as real maps have them: blocks of 40 pixels of one class, and patches of 16 that are ignored (a tenth).

    int64 [batch, height, width]. Labels drawn pixel by pixel would spare an implementation nothing that real ones do.
    """
    generator = torch.Generator().manual_seed(1)

    def spread(coarse: Tensor, block: int) -> Tensor:
        return coarse.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]

    shape = (batch, height // 40 + 1, width // 40 + 1)
    labels = spread(torch.randint(classes, shape, generator=generator), 40)
    holes = spread(torch.rand(batch, height // 16 + 1, width // 16 + 1, generator=generator) < 0.1, 16)
    return labels.masked_fill(holes, 255).to(device)


def dimensions(*sizes: int) -> str:
    """(2, 19, 60) as "2x19x60"."""
    return "x".join(map(str, sizes))
