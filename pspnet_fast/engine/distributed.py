"""One process or many: what torchrun's environment says, the few collectives that training needs, and what stops it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from pspnet_fast.data.processes import STOPPING

from .errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place: ``rank`` of ``size``, and the device it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]

    def maximum(self, value: float) -> float:
        """The largest of all ranks' values, on every rank: one small CPU message, so it never waits for a GPU."""
        if self.size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return float(number)

    def on_main(self, action: Callable[[], object]) -> None:
        """Let rank 0 act while the others wait; its error is raised on every rank, so that none waits forever."""
        failure: Exception | None = None
        if self.is_main:
            try:
                action()
            except Exception as error:
                failure = error
        failure = self.agree(failure)
        if failure is not None:
            raise failure

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def copy_buffers(self, model: torch.nn.Module) -> None:
        """Give every rank rank 0's buffers: without SyncBN each has gathered statistics of its own."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is this process's GPU where there is one, else the CPU; :class:`ConfigError` for a device not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"run.device = {name!r} is no device: use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"run.device = {name!r}, but torch sees no GPU: use cpu, or install a CUDA build of torch"
            )
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ConfigError(f"run.device = {name!r}: there are only {torch.cuda.device_count()} GPUs; count from 0")
    return device


@contextmanager
def join_world(device_name: str) -> Iterator[World]:
    """Join the processes that torchrun started (NCCL for CUDA tensors, gloo for the rest); alone without torchrun."""
    size, rank, local_rank = (
        int(os.environ.get(key, default)) for key, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    device = pick_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, rank, size)
    finally:
        dist.destroy_process_group()


class StopRequest:
    """The first signal that stops a run becomes a request, which the training loop reads between two steps.

    Schedulers and spot machines send one some seconds before they kill the process. The second, or one while the
    present step is already saved, ends the process at once.

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
