"""Signals that stop a run: schedulers and spot machines send them some seconds before they kill it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pspnet_fast.data.processes import STOPPING


class StopRequest:
    """The first of :data:`STOPPING` becomes a request, which the training loop reads between two steps.

    The second, or one while the present step is already saved, ends the process at once.

    Attributes:
        signal: the number of the signal, 0 for none.
    """

    def __init__(self, *, verbose: bool) -> None:
        self.verbose, self.signal, self._saved_step = verbose, 0, None  # type: bool, int, int | None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals over (in the main thread alone, as Python allows)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def saved(self, step: int) -> Iterator[None]:
        """In the block nothing is lost if the process ends: the checkpoint of ``step`` is written."""
        self._saved_step = step
        try:
            yield
        finally:
            self._saved_step = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._saved_step is not None:
            self._say(f"{name}: stopping; the checkpoint of step {self._saved_step} is written, continue with --resume")
        elif self.signal:
            self._say(f"{name}: stopping at once, without another checkpoint")
        else:
            self.signal = number
            self._say(f"{name}: stopping after this step and its checkpoint; a second signal stops at once")
            return
        raise SystemExit(128 + number)

    def _say(self, text: str) -> None:
        if self.verbose:
            os.write(2, f"{text}\n".encode())  # a handler must not enter Python's buffered writer a second time
