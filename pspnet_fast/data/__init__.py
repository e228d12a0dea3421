"""Data sets for semantic segmentation: readers, augmentation, and street scenes drawn by a seeded generator."""

from __future__ import annotations

from pspnet_fast.data.dataset import SegmentationDataset, open_dataset, read_image, read_label
from pspnet_fast.data.info import DatasetError, DatasetInfo
from pspnet_fast.data.scenes import draw_scene, write_scenes
from pspnet_fast.data.sources import DATASETS, DatasetSource, Sample
from pspnet_fast.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RandomAffineCrop,
    SegmentationTransform,
    eval_transform,
    train_transform,
)

__all__ = [
    "DATASETS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DatasetError",
    "DatasetInfo",
    "DatasetSource",
    "RandomAffineCrop",
    "Sample",
    "SegmentationDataset",
    "SegmentationTransform",
    "draw_scene",
    "eval_transform",
    "open_dataset",
    "read_image",
    "read_label",
    "train_transform",
    "write_scenes",
]
