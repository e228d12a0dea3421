"""Labels outside ``[0, C)``: an error at once on the CPU, a note without waiting on a GPU.

A kernel that meets such a label leaves the pixel out and writes the label into page-locked host memory, one word a
device. The next call on that device looks there, which costs a read of its own memory, and raises. With the environment
variable ``PSPNET_FAST_CHECK_LABELS=1`` every call waits for its kernels and raises itself.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

NOTHING = 0  # a class always, so never a label out of range


def watch_labels(target: Tensor, classes: int, ignore_index: int) -> Tensor | None:
    """To be called before the kernels: raises for what is known, and gives what they note a bad label in.

    Args:
        target: label map of any shape, int64, int32 or uint8.
        classes, ignore_index: a label that is neither in ``[0, classes)`` nor ``ignore_index`` is bad.

    Returns:
        The device's word, int64 ``[1]`` in host memory; None on the CPU, where all labels have been looked at.

    Raises:
        IndexError: a bad label in ``target`` (CPU), or one that an earlier call on the device has met (GPU).
    """
    if target.device.type == "cpu":
        labels = target.long()  # compared with a number that a uint8 cannot hold, that would wrap
        bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
        if bad.any():
            raise IndexError(f"Target {target[bad][0].item()} is out of bounds.")
        return None
    noted = _word(target.device)
    raise_noted(noted, "in the target of an earlier call")
    return noted


def check_watched(noted: Tensor | None, device: torch.device) -> None:
    """To be called after the kernels: in the checked mode, waits for them and raises IndexError for a bad label."""
    if noted is not None and os.environ.get("PSPNET_FAST_CHECK_LABELS") == "1":
        torch.accelerator.synchronize(device)
        raise_noted(noted, "in the target of this call")


def raise_noted(noted: Tensor, where: str) -> None:
    """Raises IndexError if a label is noted, and forgets it."""
    label = int(noted.item())
    if label == NOTHING:
        return
    noted.fill_(NOTHING)
    raise IndexError(
        f"Target {label} is out of bounds, {where}; its pixels were left out. "
        "With PSPNET_FAST_CHECK_LABELS=1 the call that meets such a label raises."
    )


@functools.cache
def _word(device: torch.device) -> Tensor:
    return torch.full((1,), NOTHING, dtype=torch.int64, device="cpu").pin_memory()
