"""Metrics of a network on a data set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from pspnet_fast.data import DatasetInfo
from pspnet_fast.data.processes import process_loader
from pspnet_fast.nn import PSPNet

from .config import Amp, EvalConfig
from .distributed import World
from .inference import autocast, predict_labels
from .metrics import ConfusionMatrix, Metrics
from .progress import watched

Pair = tuple[Tensor, Tensor]


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    options: EvalConfig,
    *,
    info: DatasetInfo | None = None,
    amp: Amp = "none",
    workers: int = 0,
    world: World | None = None,
) -> Metrics:
    """Predict every image at its full size and count.

    Args:
        model: a PSPNet on its device; its training mode is restored afterwards.
        dataset: pairs of a normalised image float [3, H, W] and a label [H, W] of integers, such as a
            ``SegmentationDataset`` with the transform :func:`pspnet_fast.data.eval_transform`.
        info: the classes; ``dataset.info`` by default.
        world: the processes that share the work; each then returns the metrics of the whole data set.
    """
    device = next(model.parameters()).device
    world = world or World(device)
    loader = eval_loader(dataset, options, workers=workers, world=world)
    return evaluate_loader(model, loader, info or dataset.info, options, amp=amp, world=world)  # type: ignore[attr-defined]


def eval_loader(dataset: Dataset[Any], options: EvalConfig, *, workers: int, world: World) -> DataLoader[Any]:
    """This process's share of the data set, as lists of (image, label); images need not be of one size."""
    share = Subset(dataset, range(world.rank, len(dataset), world.size))  # type: ignore[arg-type]
    return process_loader(
        share,
        workers,
        batch_size=options.batch_size,
        collate_fn=list,
        pin_memory=world.device.type == "cuda",
        persistent_workers=workers > 0,
    )


@torch.inference_mode()
def evaluate_loader(
    model: nn.Module, loader: DataLoader[Any], info: DatasetInfo, options: EvalConfig, *, amp: Amp, world: World
) -> Metrics:
    """:func:`evaluate` on a loader of :func:`eval_loader`, which serves several validations."""
    matrix = ConfusionMatrix(info.num_classes, world.device, info.ignore_index)
    was_training = model.training
    model.eval()
    network = model.optimize_for_inference() if isinstance(model, PSPNet) else model
    try:
        total = world.size * len(loader.dataset)  # type: ignore[arg-type]  # the ranks advance alike
        batches = watched(loader, "evaluate", total, count=lambda batch: world.size * len(batch), enabled=world.is_main)
        for images, labels in (group for batch in batches for group in _equal_sizes(batch)):
            images = images.to(world.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            labels = labels.to(world.device, non_blocking=True)
            with autocast(world.device, amp):
                prediction = predict_labels(network, images, options)
            matrix.update(prediction, labels)
    finally:
        model.train(was_training)
    return Metrics(world.sum(matrix.counts).cpu(), info.classes)


def _equal_sizes(pairs: list[Pair]) -> Iterator[Pair]:
    """Neighbours of one size as a batch."""
    for _, group in groupby(pairs, key=lambda pair: pair[0].shape):
        images, labels = zip(*group, strict=True)
        yield torch.stack(images), torch.stack(labels)
