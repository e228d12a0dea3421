"""Runs operators of csrc/cuda on CPU tensors.

A library of them (compiling.py) registers the functions of csrc/cuda/*.cpp for CUDA tensors, as they do anywhere. Here
CPU tensors are sent there, by a kernel that takes the place of csrc/cpu's and runs each call several times:

- with the threads and blocks in other orders, to the same bits;
- with new tensors full of NaN (or the largest integer), so that what a kernel does not write shows;
- with copies of the tensors that it writes into, as its schema tells; the caller's get what was written at the end.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "pspnet_fast"
Unavailable = Callable[..., str | None]
ORDERS = (0, 1, 2)  # ascending, descending, shuffled
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class Operators:
    """The operators of a loaded library; ``names`` are those that have kernels in it."""

    def __init__(self, library: str | Path, orders: Sequence[int] = ORDERS) -> None:
        import pspnet_fast  # noqa: F401  defines the operators

        torch.ops.load_library(library)
        defined = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{NAMESPACE}::")]
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        self.names = [name.removeprefix(f"{NAMESPACE}::") for name in defined if has_kernel(name, "CUDA")]
        self.orders = orders
        self.lock = threading.Lock()
        self.control = ctypes.CDLL(str(library))
        self.registry = torch.library.Library(NAMESPACE, "IMPL")
        for name in self.names:
            self.registry.impl(name, self._in_every_order(name), "CPU", allow_override=True)
        # PyTorch has products of half precision with a result in float32 for GPUs alone.
        self.products = torch.library.Library("aten", "IMPL")
        self.products.impl("mm.dtype_out", _wide_product, "CPU")

    def unavailable(self, elsewhere: Unavailable) -> Unavailable:
        """pspnet_fast.backend.unavailable where these operators are the back end ``cuda``, on CPU tensors."""

        @functools.wraps(elsewhere)
        def unavailable(operator: str, backend: str, device_type: str, index: int | None = None) -> str | None:
            if (backend, device_type) != ("cuda", "cpu"):
                return elsewhere(operator, backend, device_type, index)
            return None if operator in self.names else "csrc/cuda has no kernel for it"

        return unavailable

    def _in_every_order(self, name: str) -> Callable[..., Any]:
        operator = getattr(getattr(torch.ops, NAMESPACE), name).default

        def run(*arguments: Any) -> Any:
            results, written = self._run(operator, self.orders[0], arguments)
            for order in self.orders[1:]:
                try:
                    again = self._run(operator, order, arguments)
                except IndexError:
                    # A label out of range is reported by the call after. It was to be the caller's: make it due again.
                    return self._run(operator, self.orders[0], arguments)[0]
                assert_same_bits((results, written), again, f"{name} depends on the order of threads")
            with torch.no_grad():
                for index, tensor in written.items():
                    arguments[index].copy_(tensor)
            return results

        return run

    def _run(self, operator: Any, order: int, arguments: Sequence[Any]) -> tuple[Any, dict[int, Tensor]]:
        """The results, and copies of the arguments that were written into, by their places."""
        schema = operator._schema.arguments
        written = {i: twin(arguments[i]) for i, a in enumerate(schema) if a.alias_info and a.alias_info.is_write}
        with self.lock:  # both settings are the process's
            self.control.cuda_on_cpu_set_order(order)
            before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
            torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors
            try:
                results = operator.redispatch(_CUDA, *(written.get(i, a) for i, a in enumerate(arguments)))
            finally:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        return results, written


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
    return out.copy_(a.to(dtype) @ b.to(dtype))


def twin(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, of the same strides and alignment, be the tensor dense or not."""
    with torch.no_grad():
        storage = tensor.untyped_storage()
        memory = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage().copy_(storage)
        return tensor.new_empty(0).set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())


def tensors_in(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    parts = results.values() if isinstance(results, dict) else results or ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def assert_same_bits(first: Any, second: Any, message: str) -> None:
    """NaN included: a sum of the same numbers in the same order has the same bits."""
    for a, b in zip(tensors_in(first), tensors_in(second), strict=True):
        same = a.stride() == b.stride() and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
        if not same:
            raise AssertionError(message)
