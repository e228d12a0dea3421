"""Data sets for semantic segmentation: readers, augmentation, and street scenes drawn by a seeded generator."""

from __future__ import annotations

from pspnet_fast.data.check import check_headers, count_pixels
from pspnet_fast.data.classes import DatasetError, DatasetInfo, label_table, voc_colormap
from pspnet_fast.data.dataset import SegmentationDataset, open_dataset, split_samples
from pspnet_fast.data.labels import ColorTable, OwnLabels, UnknownLabelError, read_label
from pspnet_fast.data.reading import IMAGE_SUFFIXES, ReadOptions, read_header, read_image
from pspnet_fast.data.registry import DATASETS, DatasetSource, Layout, Sample, find_samples
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
    "ColorTable",
    "DatasetError",
    "DatasetInfo",
    "DatasetSource",
    "Layout",
    "OwnLabels",
    "RandomAffineCrop",
    "ReadOptions",
    "Sample",
    "SegmentationDataset",
    "SegmentationTransform",
    "UnknownLabelError",
    "check_headers",
    "count_pixels",
    "draw_scene",
    "eval_transform",
    "find_samples",
    "label_table",
    "open_dataset",
    "read_header",
    "read_image",
    "read_label",
    "split_samples",
    "train_transform",
    "voc_colormap",
    "write_scenes",
]
