"""Which samples make step k, and with which random crop: functions of the seed alone.

An interrupted run therefore continues with the samples an uninterrupted one would have seen, whatever the number of
loader processes, and the loader never pauses between epochs because one iteration spans the whole run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pspnet_fast.data.processes import process_loader

from .errors import ConfigError, LoaderError

SampleKey = tuple[int, int]  # epoch, index in the data set


def mix(*parts: int) -> int:
    """A 63-bit seed that depends on every part (nearby seeds give unrelated streams)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class StepSampler(Sampler[list[SampleKey]]):
    """The samples of one process for the steps ``start, start + 1, …``; an epoch's tail that fills no batch is dropped.

    Args:
        length: images in the data set.
        batch_size: images of one step over all processes; a multiple of ``world_size``.
        stop: first step not taken; ``None`` never stops.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        if length < batch_size:
            raise ConfigError(f"optim.batch_size = {batch_size} exceeds the {length} training images: lower it")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.start, self.stop = rank, world_size, start, stop
        self.steps_per_epoch = length // batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.batch_size // self.world_size
        drawn, order = -1, torch.empty(0, dtype=torch.int64)
        for step in count(self.start) if self.stop is None else range(self.start, self.stop):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != drawn:
                generator = torch.Generator().manual_seed(mix(self.seed, epoch))
                drawn, order = epoch, torch.randperm(self.length, generator=generator)
            first = position * self.batch_size + self.rank * share
            yield [(epoch, int(index)) for index in order[first : first + share]]


class SeededDataset(Dataset[tuple[Tensor, Tensor]]):
    """Draws each sample's random transform from a seed of its own: (run seed, epoch, index)."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it also queues a seed for CUDA, a sample, in a process that never uses CUDA.
            torch.default_generator.manual_seed(mix(self.seed, epoch, index))
            image, label = self.dataset[index]
        return image, label


def train_loader(dataset: Dataset[Any], sampler: StepSampler, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Batches (float32 [N, 3, h, w], uint8 [N, h, w]) of the sampler's steps."""
    return process_loader(
        SeededDataset(dataset, sampler.seed),
        workers,
        batch_sampler=sampler,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(mix(sampler.seed)),
    )


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn the end of a loader process, which torch raises wherever the main thread is, into :class:`LoaderError`."""
    try:
        yield
    except RuntimeError as error:
        pattern = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: \w+|exited)"
        ended = re.search(pattern, f"{error.__cause__}\n{error}")
        if ended is None:
            raise
        raise LoaderError(
            f"loader process {ended[1]} {ended[2]}; where the machine ran out of memory, lower data.workers, "
            "data.crop or optim.batch_size"
        ) from error


def worker_message(error: Exception) -> str:
    """The message of an error raised in a loader process, without the traceback torch wraps around it."""
    text = str(error)
    return text.rpartition(f"{type(error).__name__}: ")[2].strip() if text.startswith("Caught ") else text
