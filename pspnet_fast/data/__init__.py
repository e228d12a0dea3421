"""Data sets for semantic segmentation: readers, augmentation, and street scenes drawn by a seeded generator."""

from __future__ import annotations

from pspnet_fast.data.check import check_headers, count_pixels
from pspnet_fast.data.classes import DatasetError, DatasetInfo
from pspnet_fast.data.dataset import SegmentationDataset, open_dataset
from pspnet_fast.data.reading import IMAGE_SUFFIXES, ReadOptions, read_header, read_image, read_label
from pspnet_fast.data.registry import DATASETS, DatasetSource, Sample
from pspnet_fast.data.scenes import draw_scene, write_scenes
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
    "IMAGE_SUFFIXES",
    "DatasetError",
    "DatasetInfo",
    "DatasetSource",
    "RandomAffineCrop",
    "ReadOptions",
    "Sample",
    "SegmentationDataset",
    "SegmentationTransform",
    "check_headers",
    "count_pixels",
    "draw_scene",
    "eval_transform",
    "open_dataset",
    "read_header",
    "read_image",
    "read_label",
    "train_transform",
    "write_scenes",
]
