"""The shapes of real trainings: the crops, classes and options that published recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

SEMSEG, MMSEG, SMP, TRANSFORMERS = "semseg", "mmsegmentation", "segmentation_models.pytorch", "transformers"


@dataclass(frozen=True)
class Configuration:
    """A training as its recipe has it.

    Attributes:
        name: data set and crop.
        recipe: the project whose recipe it is, and whose arrangement of the head is measured at it.
        classes, crop: of the data set; height and width.
        images: in a step on one device.
        channels: of the backbone's last map.
    """

    name: str
    recipe: str
    classes: int
    crop: tuple[int, int]
    images: int
    channels: int = 2048

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps and logits: a backbone of stride 8 gives (n - 1) // 8 + 1."""
        height, width = ((n - 1) // 8 + 1 for n in self.crop)
        return height, width

    @property
    def map_images(self) -> int:
        """Of what is in front of the logits: two at least, as the 1x1 level's normalisation takes no single value."""
        return max(self.images, 2)


@dataclass(frozen=True)
class Precision:
    """The dtype of maps and logits (a half precision: as autocast gives them), and their layout."""

    dtype: torch.dtype
    layout: str


def configurations(device: str, *, quick: bool) -> list[Configuration]:
    """What is measured on a device. ``quick``: one recipe, with an image and a narrow map."""
    if quick:
        return [Configuration("VOC 473", SEMSEG, 21, (473, 473), 1, channels=128)]
    images = 2 if device == "cpu" else 8
    return [
        Configuration("Cityscapes 713", SEMSEG, 19, (713, 713), images),
        Configuration("Cityscapes 512x1024", MMSEG, 19, (512, 1024), images),
        Configuration("ADE20K 473", SEMSEG, 150, (473, 473), images),
        Configuration("VOC 473", SEMSEG, 21, (473, 473), images),
        Configuration("COCO-Stuff 512", MMSEG, 171, (512, 512), images),
    ]


def precisions(device: str) -> list[Precision]:
    """float32 everywhere; on a GPU also what training there runs in."""
    exact = Precision(torch.float32, "NCHW")
    return [exact] if device == "cpu" else [Precision(torch.bfloat16, "channels_last"), exact]


def of_distinct_maps(chosen: list[Configuration]) -> list[Configuration]:
    """``chosen`` without those whose backbone gives the same map as an earlier one's: classes change nothing there."""
    distinct = {(c.map_size, c.images, c.channels, c.recipe): c for c in reversed(chosen)}
    return [c for c in chosen if c in distinct.values()]


def labels(
    configuration: Configuration, precision: Precision, shape: str, arrangement: str, direction: str
) -> Mapping[str, Any]:
    """What tells a case from the operator's others."""
    return {
        "configuration": configuration.name,
        "shape": shape,
        "dtype": str(precision.dtype).removeprefix("torch."),
        "layout": precision.layout,
        "direction": direction,
        "arrangement": arrangement,
    }
