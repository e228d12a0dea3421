"""Class weights, given or counted from the training labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pspnet_fast.data import SegmentationDataset, count_pixels

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
    counts = count_pixels(dataset, workers=workers, rank=world.rank, ranks=world.size)
    return world.sum(counts[: dataset.info.num_classes])  # CPU tensors: gloo
