"""Loaders, and the processes in which they read samples."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing.util  # its own function at exit is registered here, and runs after the one below
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # what asks the main process to stop


def process_loader(
    dataset: Any, workers: int, *, generator: torch.Generator | None = None, **options: Any
) -> DataLoader[Any]:
    """A ``DataLoader`` with those options, whose processes end with this one and leave :data:`STOPPING` to it.

    It has a generator of its own, so that starting it leaves alone the stream that dropout draws from.
    """
    generator = generator or torch.Generator()
    return DataLoader(dataset, num_workers=workers, worker_init_fn=_start, generator=generator, **options)


def mapped(function: Callable[[Any], Any], indices: Sequence[int], workers: int) -> Iterable[Any]:
    """The function's results, in order, from loader processes (0: from this one)."""
    return process_loader(indices, workers, batch_size=None, collate_fn=function)  # the samples are the indices


def _start(_: int) -> None:
    """What a loader process does first; it then ends with the main process even if that is killed."""
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
