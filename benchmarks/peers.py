"""Who is measured: stock operators, torch.compile of them, this package on each back end, other projects' packages."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Call, Case, Place, Results, Shape, differentiated, dimensions
from pspnet_fast.backend import kernels, unavailable, use_backend

EAGER, COMPILE, MAX_AUTOTUNE, OURS = "eager", "compile", "compile max-autotune", "pspnet_fast"
OURS_COMPILED = "pspnet_fast+compile"  # of the whole network: torch.compile of what surrounds the fused operators
OPTIMIZED, OPTIMIZED_COMPILED = "pspnet_fast+optimize", "pspnet_fast+optimize+compile"  # optimize_for_inference()
PLAIN_READ = "x.sum()"  # no peer: one read of an operator's first input
SEMSEG, MMSEG, SMP, TRANSFORMERS = "semseg", "mmsegmentation", "segmentation_models.pytorch", "transformers"
Functions = tuple[Callable[..., Tensor], Callable[..., Tensor]]  # in stock operators, and in this package
# Projects that are peers where they are installed: the package's module, and its name for pip.
PACKAGES = {
    SMP: ("segmentation_models_pytorch", "segmentation-models-pytorch"),
    TRANSFORMERS: ("transformers", "transformers"),
}


def is_ours(peer: str) -> bool:
    """Whether a peer is this package: "pspnet_fast", on one back end ("pspnet_fast cuda"), or compiled."""
    return peer.startswith(OURS)


def our_peers(operators: Sequence[str], device: str) -> tuple[str, ...]:
    """This package on each back end with a kernel for one of the operators here; "pspnet_fast" where there is none."""
    backends = [
        name
        for name in ("cpu", "cuda", "triton")
        if any(name in kernels(op) and unavailable(op, name, device) is None for op in operators)
    ]
    return tuple(f"{OURS} {name}" for name in backends) or (OURS,)


def peers_of(operators: Sequence[str], device: str, project: str = "") -> dict[str, Any]:
    """A case's "peers" (stock operators, a project's own package, this package) and "skipped"."""
    packages, skipped = [project] if project in PACKAGES else [], {}
    if packages and importlib.util.find_spec(PACKAGES[project][0]) is None:
        packages, skipped = [], {project: f"not installed: pip install {PACKAGES[project][1]}"}
    return {"peers": (EAGER, COMPILE, *packages, *our_peers(operators, device)), "skipped": skipped}


def backend_of(peer: str) -> AbstractContextManager[None]:
    """The back end that a peer of this package runs on; "auto" where its name has none, and for all others."""
    return use_backend(peer.split()[1] if is_ours(peer) and " " in peer else "auto")


def compiled(function: Callable[..., Any], peer: str) -> Callable[..., Any]:
    """``function`` as a peer runs it: compiled for the very shapes, or as it is."""
    if peer in (COMPILE, OURS_COMPILED, OPTIMIZED_COMPILED):
        return torch.compile(function, dynamic=False)
    if peer == MAX_AUTOTUNE:
        return torch.compile(function, dynamic=False, mode="max-autotune")
    return function


def operator_call(
    functions: Functions, place: Place, shapes: Sequence[Shape], weight: Shape | None, result: Shape | None, peer: str
) -> Call:
    """A peer's function of inputs of these shapes, then of a weight; with its result's shape, also all gradients."""
    leaves = [place.normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if peer == PLAIN_READ:
        return lambda: (leaves[0].sum(),)
    if weight is not None:  # scaled as in a network, so that results are about 1
        leaves.append(place.normal(*weight, seed=len(leaves)) / math.prod(weight[1:]) ** 0.5)
    leaves = [leaf.requires_grad_(result is not None) for leaf in leaves]
    upstream = None if result is None else place.normal(*result, seed=len(leaves))
    stock, fused = functions
    function = fused if is_ours(peer) else compiled(stock, peer)

    def call() -> Results:
        with backend_of(peer):
            return (function(*leaves),) if upstream is None else differentiated(function, leaves, upstream)

    return call


def operator_case(
    operator: str,
    place: Place,
    functions: Functions,
    shapes: Sequence[Shape],
    *,
    title: str = "",
    weight: Shape | None = None,
    result: Shape | None = None,
    **options: Any,
) -> Case:
    """One operator, stock and fused, as in :func:`operator_call`; ``options`` are the other fields of the case."""
    labels = place.labels(title or dimensions(*shapes[0]), backward=result is not None)
    build = functools.partial(operator_call, functions, place, shapes, weight, result)
    options = {**peers_of([operator], place.device), **options}
    return Case(operator=operator, labels=labels, device=place.device, build=build, **options)


def package_versions(peers: Iterable[str]) -> dict[str, str]:
    """The installed versions of the peers that are packages."""
    return {peer: importlib.metadata.version(PACKAGES[peer][1]) for peer in peers if peer in PACKAGES}
