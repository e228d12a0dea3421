"""Which implementation an operator runs on: reference, cpu (C++), triton or cuda (CUDA C++).

``auto``, the default, takes the fastest one that can run on the tensor's device. ``PSPNET_FAST_BACKEND`` sets another
default for the process, :func:`use_backend` forces one for a ``with`` block; a forced backend that cannot run raises
:class:`BackendError` with the reason instead of quietly running something else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pspnet_fast.extension import EXTENSION

BACKENDS = ("reference", "cpu", "triton", "cuda")
# The kernels that each operator has.
KERNELS: dict[str, tuple[str, ...]] = {
    "pyramid_pool": ("cpu", "triton", "cuda"),
    "pyramid_levels": ("cuda",),
    "pyramid_concat": ("cpu", "triton", "cuda"),
    "pyramid_conv": ("cpu", "triton", "cuda"),
    "pyramid_conv_norm_relu": ("cpu", "triton", "cuda"),
    "upsample_cross_entropy": ("cpu", "triton", "cuda"),
    "dual_cross_entropy": ("cpu", "triton", "cuda"),
    "upsample_argmax": ("cpu", "triton", "cuda"),
}
# Without a kernel some operators still run a better algorithm than the stock chain, written in PyTorch operators.
COMPOSED = "composed"
BETTER_COMPOSED = ("pyramid_levels", "pyramid_concat", "pyramid_conv", "pyramid_conv_norm_relu", "upsample_argmax")


class BackendError(RuntimeError):
    """A backend was asked for that cannot run here; the message says why and what to do."""


def _checked(name: str, source: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise BackendError(f"{source}={name!r} is not a backend; choose one of {', '.join((*BACKENDS, 'auto'))}")
    return name


_forced = _checked(os.environ.get("PSPNET_FAST_BACKEND", "auto"), "PSPNET_FAST_BACKEND")


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


def select(operator: str, device_type: str) -> str:
    """What ``operator`` runs on for tensors of ``device_type`` ("cpu", "cuda", "meta", …).

    One of :data:`BACKENDS`, or :data:`COMPOSED` where a backend has no kernel for the operator.
    """
    if _forced == "auto":
        return _fastest(operator, device_type)
    return _runnable(operator, _forced, device_type)


@torch.compiler.assume_constant_result
def _runnable(operator: str, backend: str, device_type: str) -> str:
    reason = None if device_type == "meta" else unavailable(operator, backend, device_type)
    if reason is not None:
        raise BackendError(
            f"backend {backend!r} cannot run {operator} on {device_type} tensors: {reason}. "
            "Use use_backend('auto'), or unset PSPNET_FAST_BACKEND."
        )
    return backend if backend in (*KERNELS[operator], "reference") else COMPOSED


# A constant to torch.compile, which cannot look into the environment; what may change, `_forced`, it guards on itself.
@torch.compiler.assume_constant_result
def _fastest(operator: str, device_type: str) -> str:
    for backend in ("cuda", "triton") if device_type == "cuda" else ("cpu",):
        if backend in KERNELS[operator] and unavailable(operator, backend, device_type) is None:
            return backend
    return COMPOSED if operator in BETTER_COMPOSED else "reference"


@functools.cache
def unavailable(operator: str, backend: str, device_type: str) -> str | None:
    """None where ``backend`` can run ``operator`` on ``device_type`` tensors, else the reason why it cannot."""
    if backend == "reference":
        return None
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    wanted = "cpu" if backend == "cpu" else "cuda"
    if device_type != wanted and not interpreted:
        return f"it runs on {wanted} tensors"
    if backend not in KERNELS[operator]:
        return None  # composed of PyTorch operators
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    return EXTENSION.cpu if backend == "cpu" else EXTENSION.cuda or _unsupported_gpu()


def _unsupported_gpu() -> str | None:
    """The reason why the compiled kernels do not run on the current GPU, if one is there."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    built = [int(name.split("-")[0].rstrip("a")) for name in EXTENSION.info.get("cuda_architectures", [])]
    if built and 10 * major + minor < min(built):
        return (
            f"it was compiled for compute capability {min(built) / 10} and newer, but this GPU has {major}.{minor}; "
            f"rebuild with TORCH_CUDA_ARCH_LIST={major}.{minor}"
        )
    return None
