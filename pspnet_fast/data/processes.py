"""Processes that read samples."""

from __future__ import annotations

import ctypes
import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # what asks the main process to stop


def start_loader_process(_: int) -> None:
    """Let a loader process leave :data:`STOPPING` to the main process and end with it, even if that is killed."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
