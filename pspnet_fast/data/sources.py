"""The registry of data sets: where each keeps its images and labels, and what its label values mean.

A data set is a row of DATASETS, not a reader: `find.find_samples` walks any of the layouts that the rows describe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pspnet_fast.data.classes import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS, VOC
from pspnet_fast.data.info import IGNORE, DatasetInfo, label_table

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Sample:
    """One picture on disk; `label` is None where the data set publishes none (test splits)."""

    image: Path
    label: Path | None


@dataclass(frozen=True)
class Layout:
    """How a data set names its files.

    Args:
        images: folder of the images under the root, with {split}; sub-folders are walked.
        labels: the same for the labels; an image and its label share the path below these, up to the suffixes.
        image_suffixes: what is cut off an image's path to get the name it shares with its label.
        label_suffix: the same for the label.
        table: 256 entries from a label file's values to train ids (see `label_table`).
        split_file: a text file under the root, with {split}, that lists the names of a split, one a line.
            Without it the split is whatever the folders hold.
        splits: names of the splits on disk, by the name that the user gives.
    """

    images: str
    labels: str
    table: np.ndarray
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffix: str = ".png"
    split_file: str | None = None
    splits: dict[str, str] = field(default_factory=lambda: {name: name for name in ("train", "val", "test")})


@dataclass(frozen=True)
class DatasetSource:
    """A row of the registry.

    Args:
        info: classes and colours; None where the user names the classes (list files).
        layouts: the layouts that the data set comes in; the one with the most labels on disk is read. None at all
            means that a list file names the samples.
        subfolders: where under the given root the data set may lie, as its archive unpacks.
        origin: where to get it, for error messages.
    """

    info: DatasetInfo | None
    layouts: tuple[Layout, ...]
    origin: str
    subfolders: tuple[str, ...] = ("",)


def _identity(count: int, *ignored: int) -> np.ndarray:
    return label_table({index: index for index in range(count)}, ignored)


_CAMVID = DatasetSource(
    CAMVID,
    (Layout("images/{split}", "labels/{split}", _identity(11, 11, IGNORE)),),
    origin="expected images/{train,val}/NAME.jpg and labels/{train,val}/NAME.png under the root",
)

DATASETS: dict[str, DatasetSource] = {
    "camvid": _CAMVID,
    "scenes": replace(
        _CAMVID,
        info=replace(CAMVID, name="scenes"),
        origin="draw them first: pspnet_fast.data.write_scenes(root)",
    ),
    "cityscapes": DatasetSource(
        CITYSCAPES,
        tuple(
            Layout(
                "leftImg8bit/{split}",
                "gtFine/{split}",
                table,
                image_suffixes=("_leftImg8bit.png",),
                label_suffix=f"_gtFine_{kind}.png",
            )
            for kind, table in (
                ("labelTrainIds", _identity(19, IGNORE)),
                (
                    "labelIds",
                    label_table(
                        {value: index for index, value in enumerate(CITYSCAPES_LABEL_IDS)}, (*range(34), IGNORE)
                    ),
                ),
            )
        ),
        origin="unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (cityscapes-dataset.com) in the root",
    ),
    "ade20k": DatasetSource(
        ADE20K,
        (
            Layout(
                "images/{split}",
                "annotations/{split}",
                label_table({index + 1: index for index in range(150)}, (0,)),
                splits={"train": "training", "val": "validation"},
            ),
        ),
        origin="unpack ADEChallengeData2016.zip (groups.csail.mit.edu/vision/datasets/ADE20K) under the root",
        subfolders=("", "ADEChallengeData2016"),
    ),
    "voc": DatasetSource(
        VOC,
        (
            Layout(
                "JPEGImages",
                "SegmentationClass",
                _identity(21, IGNORE),
                split_file="ImageSets/Segmentation/{split}.txt",
                splits={name: name for name in ("train", "val", "trainval", "test")},
            ),
        ),
        origin="unpack VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012) under the root",
        subfolders=("", "VOC2012", "VOCdevkit/VOC2012"),
    ),
    "list": DatasetSource(None, (), origin="give list_file= a text file of 'image label' lines and classes="),
}
