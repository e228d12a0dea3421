"""Launchers of several host threads do not disturb each other, wherever one interrupts the other."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
import torch
from compiling import build, operators
from torch import Tensor

import pspnet_fast  # noqa: F401  defines the operators

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
BEFORE_LAUNCH = ctypes.CFUNCTYPE(None)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    target = operators("plain")
    build([target])
    torch.ops.load_library(target.output)
    return ctypes.CDLL(str(target.output))


def on_cuda(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.pspnet_fast, name).default.redispatch(CUDA, *arguments)


def conv(bins: list[int], side: int, backward: bool) -> tuple[Tensor, ...]:
    """pyramid_conv, or its gradients; how much shared memory its kernels take depends on ``bins``."""
    x, levels = torch.ones(1, 2, 6, 6), torch.ones(1, 2, sum(k * k for k in bins))
    weight = torch.ones(32, 2 + 2 * len(bins), side, side)
    sizes = [k for k in bins for _ in ("height", "width")]
    if backward:
        grad, wanted = torch.ones(1, 32, 6, 6), [True] * 3
        return tuple(on_cuda("pyramid_conv_backward", grad, x, levels, weight, sizes, True, True, wanted))
    return (on_cuda("pyramid_conv", x, levels, weight, None, sizes, True, True),)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_another_thread_launches_the_same_kernel_with_less_shared_memory(library: ctypes.CDLL, backward: bool) -> None:
    """At every moment before a launch: what the other thread sets for the kernel must still serve this launch."""
    expected = conv([1, 2, 3, 6], 3, backward)
    failures: list[BaseException] = []
    interruptions = 0

    def other() -> None:
        try:
            conv([1], 1, backward)
        except BaseException as error:
            failures.append(error)

    @BEFORE_LAUNCH
    def interrupt() -> None:
        nonlocal interruptions
        if threading.current_thread() is threading.main_thread():
            interruptions += 1
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    library.cuda_on_cpu_set_before_launch(interrupt)
    try:
        results = conv([1, 2, 3, 6], 3, backward)
    finally:
        library.cuda_on_cpu_set_before_launch(BEFORE_LAUNCH())
    assert failures == []
    assert interruptions >= 1  # cuBLAS takes the products: one kernel of ours may be all
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
