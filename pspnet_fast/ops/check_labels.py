"""Labels out of range that kernels on a GPU have met: they cannot raise, and the host does not wait for them."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from pspnet_fast.ops.operator import Operator


def check_labels(device: torch.device | str | int | None = None) -> None:
    """Wait for a GPU, and raise if a cross-entropy there has met a label out of range since the last check.

    On a GPU such a label raises in the next call of the same host thread, so the last call of a program never raises.
    A replayed CUDA graph runs no host code: a loop of replays raises here alone. Call it at the end of every epoch, and
    at the end. On the CPU the call itself raises, and there is nothing to wait for.

    Args:
        device: one GPU; None: every GPU that this process holds memory on.

    Raises:
        IndexError: a label outside ``[0, C)`` that is not ``ignore_index``, met by any thread of this process. Its
            pixel was left out of loss and gradient. One label is named, and all are forgotten.
    """
    for checked in _used_gpus() if device is None else [torch.device(device)]:
        like = torch.empty(0, device=checked)
        CHECK_LABELS.run("cuda", like)
        if "pspnet_fast.triton.label_flag" in sys.modules:
            CHECK_LABELS.run("triton", like)


def _used_gpus() -> list[torch.device]:
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i) > 0]


def _nothing(like: Tensor) -> None:
    """What needs no check: labels on the CPU have been looked at."""


CHECK_LABELS = Operator("check_labels", fake=_nothing, composition=_nothing, triton="label_flag:check_labels")
