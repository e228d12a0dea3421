"""A benchmark case: one operator at one shape, the peers that compute it, and the floor that none can pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.ceilings import Floor
from pspnet_fast.backend import KERNELS, unavailable, use_backend

EAGER, COMPILE, MAX_AUTOTUNE, OURS = "eager", "compile", "compile max-autotune", "pspnet_fast"
OURS_COMPILED = "pspnet_fast+compile"  # of the whole network: what surrounds the fused operators, compiled
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

Results = tuple[Tensor, ...]
Call = Callable[[], Results]


def is_ours(peer: str) -> bool:
    """Whether a peer is this package: "pspnet_fast", on a back end ("pspnet_fast cuda"), or compiled."""
    return peer.startswith(OURS)


@dataclass(frozen=True)
class Case:
    """What is measured together.

    Attributes:
        operator: the name that ``--only`` selects by.
        labels: what tells this case from the operator's others, for the table and the result row.
        device: "cpu" or "cuda".
        peers: who computes it; all others are compared with the first.
        build: makes a peer ready (inputs, modules; every peer gets the same values) and returns the call to be timed,
            which returns everything that the peers must agree on. Also takes the names in ``parts``.
        floor: the least work.
        tolerance: the largest relative difference (Euclidean norm) from the first peer's results, or for labels the
            largest share of pixels that differ.
        compared: makes what is compared from what a call returns, outside the timing.
        parts: shares of the work, or plain memory traffic, timed in the same rounds to judge by; no peers.
        gradient_bytes: the size of the results that training keeps, beside which extra memory is told; 0 leaves it out.
        page_faults: whether to measure a second time with page faults taken out (see benchmarks/README.md).
        graph: whether, on a GPU, the replay of a CUDA graph is timed beside the call.
        absent: peers that this installation does not have, and why.
    """

    operator: str
    labels: Mapping[str, Any]
    device: str
    peers: tuple[str, ...]
    build: Callable[[str], Call]
    floor: Floor
    tolerance: float
    compared: Callable[[Results], Results] = lambda results: results
    parts: tuple[str, ...] = ()
    gradient_bytes: int = 0
    page_faults: bool = False
    graph: bool = True
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Names the case on a command line and in results."""
        words = "/".join([self.operator, *map(str, self.labels.values()), self.device])
        return words.replace(" -> ", "-").replace(" + ", "+").replace(", ", ",").replace(" ", "-")


def our_peers(operators: Sequence[str], device: str) -> tuple[str, ...]:
    """This package on every back end that has a kernel for one of the operators here; "pspnet_fast" where none has."""
    backends = [
        name
        for name in ("cpu", "cuda", "triton")
        if any(name in KERNELS[op] and unavailable(op, name, device) is None for op in operators)
    ]
    return tuple(f"{OURS} {name}" for name in backends) or (OURS,)


def backend_of(peer: str) -> AbstractContextManager[None]:
    """The back end that a peer of this package runs on; "auto" where its name says none, and for the others."""
    return use_backend(peer.split()[1] if is_ours(peer) and " " in peer else "auto")


def compiled(function: Callable[..., Any], peer: str) -> Callable[..., Any]:
    """``function`` as a peer runs it: compiled for the very shapes, or as it is."""
    if peer in (COMPILE, OURS_COMPILED):
        return torch.compile(function, dynamic=False)
    if peer == MAX_AUTOTUNE:
        return torch.compile(function, dynamic=False, mode="max-autotune")
    return function


def differentiated(loss: Callable[[], Tensor], leaves: Sequence[Tensor], upstream: Tensor | None = None) -> Results:
    """The result of ``loss()`` and its gradients."""
    result = loss()
    return result.detach(), *torch.autograd.grad(result, leaves, upstream)


def as_training(device: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast for a half precision, as a training loop has it; nothing for float32."""
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


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
        rows, columns = torch.arange(height) // block, torch.arange(width) // block
        return coarse[:, rows][:, :, columns]

    shape = (batch, height // 40 + 1, width // 40 + 1)
    labels = spread(torch.randint(classes, shape, generator=generator), 40)
    holes = spread(torch.rand(batch, height // 16 + 1, width // 16 + 1, generator=generator) < 0.1, 16)
    return labels.masked_fill(holes, 255).to(device)


def normal(*shape: int, device: str, dtype: torch.dtype = torch.float32, layout: str = "NCHW", seed: int = 0) -> Tensor:
    """Standard normal values, the same for every peer."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(*shape, generator=generator, device=device).to(dtype)
    return x.contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" rather than "torch.float32"."""
    return str(dtype).removeprefix("torch.")


def dimensions(*sizes: int) -> str:
    """(2, 19, 60) as "2x19x60"."""
    return "x".join(map(str, sizes))
