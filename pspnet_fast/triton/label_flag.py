"""Labels outside ``[0, C)``: an error at once on the CPU, a note without waiting on a GPU.

A kernel that meets such a label leaves the pixel out and writes the label into page-locked host memory, a word for each
host thread and device. The thread's next call on that device looks there, which costs a read of its own memory, and
raises; :func:`check_labels` waits and looks at the words of all threads. With the environment variable
``PSPNET_FAST_CHECK_LABELS=1`` every call waits for its kernels and raises itself.
"""

from __future__ import annotations

import os
import threading

import torch
from torch import Tensor

from pspnet_fast.triton.tables import is_captured

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
    noted = _own.words.get(target.device)
    if noted is None:
        noted = _own.add(target.device)
    if not is_captured(target.device):
        raise_noted(noted, "in the target of an earlier call")
    return noted


def check_watched(noted: Tensor | None, device: torch.device) -> None:
    """To be called after the kernels: in the checked mode, waits for them and raises IndexError for a bad label."""
    if noted is not None and os.environ.get("PSPNET_FAST_CHECK_LABELS") == "1":
        torch.accelerator.synchronize(device)
        raise_noted(noted, "in the target of this call")


def check_labels(like: Tensor) -> None:
    """Wait for the device of ``like``, and raise IndexError for a label that any thread's kernels have noted there."""
    if like.device.type == "cpu":
        return
    torch.accelerator.synchronize(like.device)
    with _lock:
        words = list(_words.get(like.device, ()))
    found = [word for word in words if word.item() != NOTHING]
    for word in found[1:]:
        word.fill_(NOTHING)
    for word in found[:1]:
        raise_noted(word, "in the target of an earlier call")


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


# The words of each device. They stay, since kernels and graphs may write to them until the process ends; a thread that
# starts takes over that of one that has ended.
_words: dict[torch.device, list[Tensor]] = {}
_idle: dict[torch.device, list[Tensor]] = {}
_lock = threading.Lock()


class _Own(threading.local):
    """This thread's words."""

    def __init__(self) -> None:
        self.words: dict[torch.device, Tensor] = {}
        self.ends = _End(self.words)

    def add(self, device: torch.device) -> Tensor:
        with _lock:
            idle = _idle.setdefault(device, [])
            if not idle:
                word = torch.full((1,), NOTHING, dtype=torch.int64, device="cpu")
                idle.append(word.pin_memory() if torch.cuda.is_available() else word)
                _words.setdefault(device, []).append(idle[-1])
            self.words[device] = idle.pop()
        return self.words[device]


class _End:
    """Goes with its thread, and leaves the thread's words to others."""

    def __init__(self, words: dict[torch.device, Tensor]) -> None:
        self.words, self.idle = words, _idle

    def __del__(self) -> None:
        for device, word in self.words.items():
            self.idle[device].append(word)


_own = _Own()
