"""Metrics of a network on a data set, from an integer confusion matrix."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from pspnet_fast.data import DatasetInfo
from pspnet_fast.data.processes import process_loader
from pspnet_fast.nn import PSPNet

from .config import Amp, EvalConfig, TrainConfig
from .distributed import World
from .inference import autocast, predict_labels
from .predict import colorize
from .progress import watched

# It is imported at the first use, as it takes a second with every library of text and sound that is installed.
if importlib.util.find_spec("torchmetrics") is None:
    raise ModuleNotFoundError("No module named 'torchmetrics'", name="torchmetrics")

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


@torch.inference_mode()
def validation_panels(model: nn.Module, dataset: Any, info: DatasetInfo, config: TrainConfig) -> Iterator[Tensor]:
    """Input, label and prediction side by side, uint8 [H, 3·W, 3], of each of the first ``run.pictures`` samples.

    The model's training mode is kept.
    """
    scale, shift = (torch.tensor(values).view(3, 1, 1) for values in (config.data.std, config.data.mean))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for i in range(min(config.run.pictures, len(dataset))):
        image, label = dataset[i]
        batch = image[None].to(device, memory_format=torch.channels_last)
        with autocast(device, config.run.amp):
            prediction = predict_labels(model, batch, config.eval)[0]
        picture = (image * scale + shift).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
        yield torch.cat([picture, colorize(label, info), colorize(prediction, info)], dim=1)
    model.train(was_training)


class ConfusionMatrix:
    """Counts of (true class, predicted class) by torchmetrics, on the device of the predictions.

    Integer counts are exact (a float32 histogram stops at 2^24 pixels a class) and the same in every run.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", ignore_index: int = 255) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix

        metric = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)
        self.metric = metric.to(device)

    @property
    def counts(self) -> Tensor:
        """int64 [classes, classes], true classes in rows."""
        return self.metric.confmat

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add the pixels of ``prediction`` and ``target`` (integers, one shape) but those labelled ``ignore_index``."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape"
            )
        # In deterministic mode torchmetrics counts through a tensor of classes² values for each pixel.
        # Counts of integers are the same in every order.
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode(0)
        try:
            # int64, because uint8 labels would compare equal to an ignore_index of -1 or -100 that wraps around.
            self.metric.update(prediction.long(), target.long())
        finally:
            torch.set_deterministic_debug_mode(mode)


@dataclass(frozen=True)
class Metrics:
    """Results over a data set; ``confusion`` is int64 [classes, classes] with true classes in rows, on the CPU."""

    confusion: Tensor
    classes: tuple[str, ...]

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, float64; nan for a class neither labelled nor predicted."""
        hits = self.confusion.diagonal().double()
        return hits / (self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()).double()

    @property
    def recall(self) -> Tensor:
        """Share of each class's pixels found, float64; nan for a class that no pixel has."""
        return self.confusion.diagonal().double() / self.confusion.sum(1).double()

    @property
    def miou(self) -> float:
        return float(self.iou.nanmean())

    @property
    def macc(self) -> float:
        return float(self.recall.nanmean())

    @property
    def accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return float(self.confusion.diagonal().sum().double() / self.confusion.sum().double())

    def summary(self) -> dict[str, float]:
        return {"miou": self.miou, "macc": self.macc, "accuracy": self.accuracy}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists (for JSON); undefined values are ``None``."""
        per_class = {
            name: {"iou": _defined(iou), "accuracy": _defined(recall)}
            for name, iou, recall in zip(self.classes, self.iou.tolist(), self.recall.tolist(), strict=True)
        }
        means = {key: _defined(value) for key, value in self.summary().items()}
        return {**means, "classes": per_class, "confusion": self.confusion.tolist()}

    def table(self, title: str | None = None) -> Any:
        """A ``rich`` table: IoU, accuracy and share of the labelled pixels for each class, the means below."""
        from rich.table import Table
        from rich.text import Text

        table = Table("class", title=None if title is None else Text(title))  # Text: names may resemble markup
        for name in ("IoU", "accuracy", "pixels"):
            table.add_column(name, justify="right")
        share = self.confusion.sum(1).double() / self.confusion.sum().double()
        for name, *row in zip(self.classes, *map(_percent, (self.iou, self.recall, share)), strict=True):
            table.add_row(Text(name), *row)
        table.add_section()
        table.add_row("mean", *_percent((self.miou, self.macc)), "", style="bold")
        table.add_row("all pixels", "", *_percent((self.accuracy,)), "", style="bold")
        return table


def _defined(value: float) -> float | None:
    return value if value == value else None


def _percent(values: Tensor | Sequence[float]) -> list[str]:
    return [f"{100 * float(value):.2f}" for value in values]
