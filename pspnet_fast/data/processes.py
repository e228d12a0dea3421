"""Processes that read samples."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing.util  # its own function at exit is registered here, and runs after the one below
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


@atexit.register
def _end_loader_processes() -> None:
    """multiprocessing sends SIGTERM to its daemons and waits for them: for ever, where they leave it to this process.

    Loader processes are left where an error ends the program, whose traceback holds what reads from them.
    """
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch reports every end of a loader process as an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
