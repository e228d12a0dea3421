"""Pixels of each class in the labels: the checks before training, their table, and class weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.data import DatasetInfo, count_pixels

from .config import DataConfig, OptimConfig
from .distributed import World
from .errors import ConfigError

Labelled = Any  # a data set with info and read_label(index), as SegmentationDataset and PreparedDataset


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each train id, int64 [256], in the splits "training" and, with validation, "validation".

    Entry 255 counts those that are left out.
    """

    info: DatasetInfo
    splits: dict[str, Tensor]

    @classmethod
    def of(cls, train: Labelled, val: Labelled | None, world: World, workers: int) -> PixelCounts:
        """Read every label; the processes share the reading."""
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


def require_labels(info: DatasetInfo, split: str, images: int, labelled: int) -> None:
    """Raise :class:`ConfigError` if a split has no labelled pixel."""
    if labelled == 0:
        raise ConfigError(
            f"{info.name}, split {split!r}: none of the {images} images has a labelled pixel (all are 255, or "
            "there are no label files); choose another split, or correct the labels"
        )


def training_class_weights(options: OptimConfig, info: DatasetInfo, counts: Tensor | None) -> Tensor | None:
    """The loss's weight of each class, float32 [C], or ``None`` for equal weights; ``counts`` of the training pixels.

    Without counts, "frequency" is not possible, and a list is not compared with the classes that occur.

    Raises:
        ConfigError: a list of the wrong length, or one that leaves no training pixel a weight.
    """
    if options.class_weights == "none":
        return None
    if options.class_weights == "frequency":
        assert counts is not None
        return median_frequency_weights(counts[: info.num_classes], options.class_weight_power)
    if len(options.class_weights) != info.num_classes:
        raise ConfigError(
            f"optim.class_weights has {len(options.class_weights)} entries, {info.name} has {info.num_classes} classes"
        )
    weights = torch.tensor(options.class_weights, dtype=torch.float32)
    if counts is not None and not weights[counts[: info.num_classes] > 0].any():
        raise ConfigError(f"optim.class_weights = {list(options.class_weights)} is 0 for every class with a pixel")
    return weights


def median_frequency_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """``(median frequency / frequency) ** power``, scaled to mean 1 (median-frequency balancing: Eigen & Fergus, 2015).

    ``counts`` int64 [C] are labelled pixels, not all 0; a class that has none gets the largest weight of the others.
    """
    present = counts > 0
    counts = counts.double()
    weights = (counts[present].median() / counts.clamp(min=1)) ** power
    weights = torch.where(present, weights, weights[present].max())
    return (weights / weights.mean()).float()
