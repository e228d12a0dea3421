"""Segmentation metrics from an integer confusion matrix."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# It is imported at the first use, as it takes a second with every library of text and sound that is installed.
if importlib.util.find_spec("torchmetrics") is None:
    raise ModuleNotFoundError("No module named 'torchmetrics'", name="torchmetrics")


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
