"""Class weights, given or counted from the training labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pspnet_fast.data import SegmentationDataset, read_label

from .config import OptimConfig
from .distributed import World
from .errors import ConfigError


def training_class_weights(
    options: OptimConfig, dataset: SegmentationDataset, world: World, workers: int
) -> Tensor | None:
    """The loss's weight of each class, float32 [C], or ``None`` for equal weights.

    Raises:
        ConfigError: a list of the wrong length, or labels without a labelled pixel.
    """
    classes = dataset.info.num_classes
    if options.class_weights == "none":
        return None
    if options.class_weights == "frequency":
        return median_frequency_weights(label_counts(dataset, world, workers), options.class_weight_power)
    if len(options.class_weights) != classes:
        raise ConfigError(
            f"optim.class_weights has {len(options.class_weights)} entries, {dataset.info.name} has {classes} classes"
        )
    return torch.tensor(options.class_weights, dtype=torch.float32)


def median_frequency_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """``(median frequency / frequency) ** power``, scaled to mean 1 (median-frequency balancing: Eigen & Fergus, 2015).

    ``counts`` int64 [C] are labelled pixels; a class that has none gets the largest weight of the others.
    """
    present = counts > 0
    if not present.any():
        raise ConfigError("optim.class_weights = frequency: no training image has a labelled pixel")
    counts = counts.double()
    weights = (counts[present].median() / counts.clamp(min=1)) ** power
    weights = torch.where(present, weights, weights[present].max())
    return (weights / weights.mean()).float()


def label_counts(dataset: SegmentationDataset, world: World, workers: int = 0) -> Tensor:
    """Labelled pixels of each class over the data set, int64 [C]; the processes share the reading."""
    loader = DataLoader(_Histograms(dataset, world), batch_size=None, num_workers=workers, generator=torch.Generator())
    counts = torch.zeros(dataset.info.num_classes, dtype=torch.int64)
    for histogram in loader:
        counts += histogram
    return world.sum(counts)  # CPU tensors: gloo


class _Histograms(Dataset[Tensor]):
    """The label counts of this process's share of the samples; images are not read."""

    def __init__(self, dataset: SegmentationDataset, world: World) -> None:
        self.samples = dataset.samples[world.rank :: world.size]
        self.table: Any = dataset.table
        self.classes = dataset.info.num_classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        path = self.samples[index].label
        if path is None:
            return torch.zeros(self.classes, dtype=torch.int64)
        return torch.bincount(read_label(path, self.table).flatten(), minlength=256)[: self.classes]
