"""Which implementation an operator runs on: reference, cpu (C++), triton or cuda (CUDA C++).

``auto``, the default, takes the fastest one that can run on the tensor's device. ``PSPNET_FAST_BACKEND`` sets another
default for the process, :func:`use_backend` forces one for a ``with`` block; a forced backend that cannot run raises
:class:`BackendError` with the reason instead of quietly running something else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

from pspnet_fast.extension import EXTENSION

BACKENDS = ("reference", "cpu", "triton", "cuda")
_CHOICES = (*BACKENDS, "auto")
COMPOSED = "composed"  # made of PyTorch operators: what runs an operator where no kernel can


_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_in_graphs(function: _Function) -> _Function:
    """``torch.compiler.assume_constant_result`` without Dynamo, whose import takes as long as torch's own."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class BackendError(RuntimeError):
    """A requested backend cannot run here; the message says why and what to do."""


def _checked(name: str, source: str) -> str:
    if name not in _CHOICES:
        raise BackendError(f"{source}={name!r} is not a backend; choose one of {', '.join(_CHOICES)}")
    return name


_forced = os.environ.get("PSPNET_FAST_BACKEND", "auto")  # checked at the first call, where the error is framed


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator called inside the block on one backend.

    Args:
        name: "reference" (stock PyTorch operators), "cpu", "triton", "cuda", or "auto".

    The setting is the process's, not the thread's, so that data-parallel replicas and autograd threads see it too.
    Backward always runs on the backend that ran forward.

    Raises:
        BackendError: ``name`` is not a backend. Whether it can run is checked when an operator is called, as that
            depends on the device of its tensors.
    """
    global _forced
    previous, _forced = _forced, _checked(name, "use_backend: name")
    try:
        yield
    finally:
        _forced = previous


def active_backend() -> str:
    """The backend in force: what :func:`use_backend` or ``PSPNET_FAST_BACKEND`` says, else "auto"."""
    return _forced


def select(operator: str, device_type: str, composed: bool = False, index: int | None = None) -> str:
    """What ``operator`` runs on for tensors of ``device_type`` ("cpu", "cuda", "meta", …).

    Args:
        operator: its name, as in schemas.txt.
        device_type: of its tensors.
        composed: whether, without a kernel, its composition of PyTorch operators is better than the definition.
        index: of the tensors' device; None: the current one of its type.

    Returns:
        One of :data:`BACKENDS`, or :data:`COMPOSED`.

    Raises:
        BackendError: a forced backend cannot run the operator here.
    """
    if _forced not in _CHOICES:
        _checked(_forced, "PSPNET_FAST_BACKEND")
    definition_only = _definition_only()
    if _forced == "auto":
        return "reference" if definition_only else _fastest(operator, device_type, composed, index)
    if definition_only and _forced != "reference":
        raise BackendError(
            f"backend {_forced!r} cannot run {operator} under {definition_only}. Use use_backend('reference') or "
            "use_backend('auto')."
        )
    return _runnable(operator, _forced, device_type, index)


def _definition_only() -> str | None:
    """The transform in force that an operator with its own gradient formula cannot serve, or None.

    Such an operator has no tangent and no batching rule for its gradient.
    """
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func"
    return None


@constant_in_graphs
def _runnable(operator: str, backend: str, device_type: str, index: int | None) -> str:
    reason = None if device_type == "meta" else unavailable(operator, backend, device_type, index)
    if reason is not None:
        raise BackendError(
            f"backend {backend!r} cannot run {operator} on {device_type} tensors: {reason}. "
            "Use use_backend('auto'), or unset PSPNET_FAST_BACKEND."
        )
    return backend if backend == "reference" or backend in kernels(operator) else COMPOSED


# A constant to torch.compile, which cannot look into the environment; what may change, `_forced`, it guards on itself.
@constant_in_graphs
def _fastest(operator: str, device_type: str, composed: bool, index: int | None) -> str:
    for backend in ("cuda", "triton") if device_type == "cuda" else ("cpu",):
        if backend in kernels(operator) and unavailable(operator, backend, device_type, index) is None:
            return backend
    return COMPOSED if composed else "reference"


@functools.cache
def kernels(operator: str) -> tuple[str, ...]:
    """The backends that have a kernel for ``operator`` in this installation, as the dispatcher knows them."""
    has_kernel, name = torch._C._dispatch_has_kernel_for_dispatch_key, f"pspnet_fast::{operator}"
    found = {
        "cpu": has_kernel(name, "CPU"),
        "triton": torch._C._dispatch_has_kernel(f"{name}_triton"),
        "cuda": has_kernel(name, "CUDA"),
    }
    return tuple(backend for backend, there in found.items() if there)


def unavailable(operator: str, backend: str, device_type: str, index: int | None = None) -> str | None:
    """None where ``backend`` can run ``operator`` on ``device_type`` tensors, else the reason why it cannot.

    ``index`` is the device's; None: the current one of its type.
    """
    if backend == "reference":
        return None
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    wanted = "cpu" if backend == "cpu" else "cuda"
    if device_type != wanted and not interpreted:
        return f"it runs on {wanted} tensors"
    if backend == "triton":
        return _missing_triton()
    if backend == "cpu" or EXTENSION.cuda or not torch.cuda.is_available():
        return EXTENSION.cpu if backend == "cpu" else EXTENSION.cuda
    return _unsupported_gpu(torch.cuda.current_device() if index is None else index)


@functools.cache
def _missing_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


@functools.cache
def _unsupported_gpu(index: int) -> str | None:
    """The reason why the compiled kernels do not run on a GPU, if so."""
    capability = torch.cuda.get_device_capability(index)
    built = EXTENSION.info.get("cuda_architectures", [])
    if not built or any(runs_on(architecture, capability) for architecture in built):
        return None
    version = ".".join(map(str, capability))
    return (
        f"it was compiled for {' '.join(built)}, which do not run on cuda:{index} of compute capability {version}; "
        f"rebuild with TORCH_CUDA_ARCH_LIST={version}"
    )


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether what nvcc made for ``architecture``, as CMake names it, runs on a GPU of ``capability``.

    "90-real" is machine code for 9.0, which runs on the same major version and that minor version or a newer one;
    "90-virtual" is PTX, which any newer GPU compiles. Code for "90a" uses what 9.0 alone has, and runs on nothing else.
    """
    number, kind = architecture.split("-")
    built = divmod(int(number.rstrip("a")), 10)
    if number.endswith("a"):
        return built == capability
    return built <= capability and (kind == "virtual" or built[0] == capability[0])
