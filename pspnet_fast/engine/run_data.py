"""The data of a training run: data sets, the pixels of each class, which samples make step k, and their random crops.

Samples and crops are functions of the seed alone. An interrupted run therefore continues with the samples an
uninterrupted one would have seen, whatever the number of loader processes, and the loader never pauses between epochs
because one iteration spans the whole run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pspnet_fast.data import (
    DatasetInfo,
    SegmentationDataset,
    SegmentationTransform,
    check_headers,
    count_pixels,
    eval_transform,
)
from pspnet_fast.data.classes import IGNORE
from pspnet_fast.data.processes import process_loader

from .config import DataConfig, TrainConfig
from .datasets import kind_of, open_split, read_split, require_labels, training_transform, write_split
from .distributed import World
from .errors import ConfigError


class PreparedDataset(Dataset[tuple[Tensor, Tensor]]):
    """The (image, label) pairs of any data set, as the network takes them.

    Images uint8 [3, H, W] go through the transform, with their labels [H, W]; float images are taken as they are,
    normalised, as float32. Labels are integers of the classes of ``info``, or its ``ignore_index``; they become uint8,
    and 255 where a pixel does not count.

    Args:
        name: of the data set, in errors.
        one_size: whether float images must have one size, as batches need.

    Raises:
        ConfigError: no samples; when one is read, that it is no such pair.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        info: DatasetInfo,
        transform: SegmentationTransform,
        *,
        name: str = "dataset",
        one_size: bool = False,
    ) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ConfigError(f"{name} is {type(dataset).__name__}; it must have a length, and samples by their index")
        if not len(dataset):
            raise ConfigError(f"{name} has no samples; add some" + ("" if one_size else ", or leave it out"))
        self.dataset, self.transform, self.ignored, self.name = dataset, transform, info.ignore_index, name
        self.info = replace(info, ignore_index=IGNORE)
        self.one_size, self.size = one_size, torch.Size()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self._checked(index)
        if image.dtype == torch.uint8:
            return self.transform(image, label)
        self.size = self.size or image.shape
        if self.one_size and image.shape != self.size:
            raise ConfigError(
                f"{self.name}[{index}] is {kind_of(image)}, and another sample {list(self.size)}; cut float images to "
                "one size, or give them as uint8, which are cropped"
            )
        return image.float(), label

    def read_label(self, index: int) -> Tensor:
        """The label alone."""
        return self._checked(index)[1]

    def _checked(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset[index]
        image, label = sample if isinstance(sample, (tuple, list)) and len(sample) == 2 else (None, None)
        if not (isinstance(image, Tensor) and isinstance(label, Tensor)):
            raise ConfigError(f"{self.name}[{index}] is {kind_of(sample)}; it must be a pair of tensors (image, label)")
        fits = image.dim() == 3 and image.shape[0] == 3 and image.shape[1:] == label.shape
        if not fits or not (image.dtype == torch.uint8 or image.is_floating_point()) or label.is_floating_point():
            raise ConfigError(
                f"{self.name}[{index}] is an image {kind_of(image)} and a label {kind_of(label)}; it must be an image "
                "[3, H, W], uint8 or normalised float, and a label [H, W] of integers"
            )
        label = label.long()
        counted = label[label != self.ignored]
        if counted.numel() and not 0 <= counted.min() <= counted.max() < self.info.num_classes:
            raise ConfigError(
                f"{self.name}[{index}] has labels {int(counted.min())} .. {int(counted.max())}; {self.info.name} has "
                f"the classes 0 .. {self.info.num_classes - 1}, and {self.ignored} for pixels that do not count"
            )
        return image, torch.where(label == self.ignored, IGNORE, label).to(torch.uint8)


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each train id, int64 [256], in the splits "training" and, with validation, "validation".

    Entry 255 counts those that are left out.
    """

    info: DatasetInfo
    splits: dict[str, Tensor]

    @classmethod
    def of(cls, train: Any, val: Any | None, world: World, workers: int) -> PixelCounts:
        """Read every label of data sets with ``info`` and ``read_label(index)``; the processes share the reading."""
        splits = {"training": train} | ({} if val is None else {"validation": val})
        share = {"workers": workers, "rank": world.rank, "ranks": world.size}
        return cls(train.info, {name: world.sum(count_pixels(split, **share)) for name, split in splits.items()})

    def absent(self, counts: Tensor) -> list[str]:
        """The classes without a pixel in ``counts``."""
        return [name for name, count in zip(self.info.classes, counts.tolist(), strict=False) if count == 0]

    def check(self, data: DataConfig, images: Sequence[int]) -> None:
        """Raise :class:`ConfigError` for labels that cannot train or validate; ``images`` of each split.

        A class without a training pixel is an error where the classes are the user's own, or where at most one class
        is left.
        """
        names = (data.train_split, str(data.val_split))
        for split, number, counts in zip(names, images, self.splits.values(), strict=False):
            require_labels(self.info, split, number, int(counts[: self.info.num_classes].sum()))
        training = self.splits["training"]
        absent = self.absent(training)
        own_classes = data.own is not None and not data.allow_absent_classes
        if not absent or (not own_classes and len(absent) < self.info.num_classes - 1):
            return
        ignored = 100 * float(training[255] / training.sum())
        remedy = f"set data.classes (now {self.info.num_classes}) to the classes that the labels hold"
        if ignored:
            remedy = (
                f"{ignored:.1f}% of the training pixels have the value 255, which is left out and never a class: where "
                f"it means a class, save that as an index below {self.info.num_classes}; else {remedy}"
            )
        if own_classes:
            remedy += ", or set data.allow_absent_classes=true"
        raise ConfigError(f"no training pixel has class {', '.join(map(repr, absent))}: {remedy}")

    def table(self) -> str:
        """A line a class, and a warning for each class without a pixel in a split."""
        names = ["pixels of each class", *self.info.classes, "left out (255)"]
        columns = [[split] for split in self.splits]
        for column, counts in zip(columns, self.splits.values(), strict=True):
            total = max(1, int(counts.sum()))
            found = [*counts[: self.info.num_classes].tolist(), int(counts[255])]
            column += [f"{pixels} ({100 * pixels / total:5.2f}%)" for pixels in found]
        lines = [
            f"{name:<{max(map(len, names))}}" + "".join(f"  {cell:>22}" for cell in row)
            for name, *row in zip(names, *columns, strict=True)
        ]
        effects = {"training": "the network cannot learn it", "validation": "its IoU is not measured"}
        for split, counts in self.splits.items():
            lines += [f"warning: no {split} pixel has class {name!r}: {effects[split]}" for name in self.absent(counts)]
        return "\n".join(lines)


@dataclass(frozen=True)
class RunData:
    """What a run trains on. ``val`` is None where nothing is validated, ``pixels`` where they are not counted."""

    info: DatasetInfo
    train: SegmentationDataset | PreparedDataset
    val: SegmentationDataset | PreparedDataset | None
    pixels: PixelCounts | None

    @classmethod
    def of_configuration(cls, config: TrainConfig, folder: Path, world: World) -> RunData:
        """Open and check both splits; an automatic one stays as ``folder`` holds it, and is written there else."""
        data, held_out = config.data, world.agree(read_split(folder))
        if data.name == "folder" and data.validates and not data.val_fraction and "{split}" not in data.image_folder:
            raise ConfigError(
                f"data.image_folder = {data.image_folder} has no {{split}}, so that every image is trained on: set "
                "data.val_fraction, 0.2 for instance, or data.val_split=null for no validation"
            )
        train = open_split(data, data.train_split, training=True, held_out=held_out)
        val = open_split(data, data.val_split, held_out=held_out) if data.validates else None
        splits = [train] if val is None else [train, val]
        for split in splits:
            world.on_main(lambda split=split: check_headers(split))  # type: ignore[misc]
        pixels = PixelCounts.of(train, val, world, data.workers)
        pixels.check(data, list(map(len, splits)))
        if data.val_fraction and val is not None and not held_out:
            world.on_main(lambda: write_split(folder, data, train, val))
        return cls(train.info, train, val, pixels)

    @classmethod
    def of_caller(
        cls,
        config: TrainConfig,
        dataset: Dataset[Any],
        val: Dataset[Any] | None,
        info: DatasetInfo | None,
        world: World,
    ) -> RunData:
        """The caller's data sets. Labels are counted only where class weights need it: it reads every sample."""
        own = config.data.own
        info = info or getattr(dataset, "info", None) or (None if own is None else own.info("dataset"))
        if info is None:
            raise ConfigError("the classes of dataset= are not known: give info=DatasetInfo(...), or set data.classes")
        if info.num_classes > IGNORE:
            raise ConfigError(f"{info.name}: {info.num_classes} classes; a run has labels of 8 bits, at most {IGNORE}")
        train = PreparedDataset(dataset, info, training_transform(config.data), one_size=True)
        evaluation = eval_transform(config.data.mean, config.data.std)
        prepared = None if val is None else PreparedDataset(val, info, evaluation, name="val_dataset")
        counted = config.optim.class_weights == "frequency"
        pixels = PixelCounts.of(train, prepared, world, config.data.workers) if counted else None
        return cls(train.info, train, prepared, pixels)


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
