"""The registry of data sets: where each keeps its images and labels, and what its label values mean.

A data set is a row of DATASETS, not a reader: `find_samples` walks any of the layouts that the rows describe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pspnet_fast.data.classes import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_LABEL_IDS,
    IGNORE,
    VOC,
    DatasetError,
    DatasetInfo,
    label_table,
)
from pspnet_fast.data.files import read_lines, walk_files
from pspnet_fast.data.labels import LabelTable
from pspnet_fast.data.reading import IMAGE_SUFFIXES


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
        table: from a label file's values to train ids: see `label_table`, or a `ColorTable`.
        split_file: a text file under the root, with {split}, that lists the names of a split, one a line.
            Without it the split is whatever the folders hold.
        splits: names of the splits on disk, by the name that the user gives; empty: every split has its own name.
    """

    images: str
    labels: str
    table: LabelTable
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffix: str = ".png"
    split_file: str | None = None
    splits: dict[str, str] = field(default_factory=lambda: {name: name for name in ("train", "val", "test")})

    def folders(self, root: Path, split: str) -> tuple[Path, Path]:
        """The folders of the images and of the labels of a split."""
        name = self.splits.get(split, split)
        return root / self.images.format(split=name), root / self.labels.format(split=name)


@dataclass(frozen=True)
class DatasetSource:
    """A row of the registry.

    Args:
        info: classes and colours; None where the user names the classes (list files).
        layouts: the layouts that the data set comes in; the one with the most labels on disk is read. None at all
            where the user says where the samples are.
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
    "folder": DatasetSource(None, (), origin="say where its images and labels lie: pspnet-fast init FOLDER does"),
}


def find_samples(source: DatasetSource, root: Path, split: str) -> tuple[list[Sample], LabelTable]:
    """All samples of a split in the order of their names, and the table of their label values.

    Raises:
        DatasetError: unknown split, missing folder or split file, an image without its label, a label without its
            image, two images of one name, or no image at all.
    """
    layouts, name = source.layouts, source.info.name if source.info else "list"
    if layouts[0].splits and split not in layouts[0].splits:
        raise DatasetError(f"{name}: split '{split}' does not exist; choose from {', '.join(layouts[0].splits)}")
    places = {root / sub: layouts[0].folders(root / sub, split)[0] for sub in source.subfolders}
    base = next((base for base, image_dir in places.items() if image_dir.is_dir()), None)
    if base is None:
        looked = " or ".join(map(str, places.values()))
        raise DatasetError(f"{looked}: folder not found for split '{split}' of {name}, root={root}; {source.origin}")

    # Cityscapes ships labelIds and many have made labelTrainIds too: read the more complete, in doubt the first.
    layout = max(layouts, key=lambda layout: len(_files(layout.folders(base, split)[1], (layout.label_suffix,))))
    image_dir, label_dir = layout.folders(base, split)
    labels = _files(label_dir, (layout.label_suffix,))
    images = _files(image_dir, layout.image_suffixes, besides=labels.values())
    if not images:
        suffixes = " ".join(layout.image_suffixes)
        raise DatasetError(f"{image_dir}: no image ({suffixes}) for split '{split}' of {name}; {source.origin}")
    if not label_dir.is_dir() and split != "test":
        raise DatasetError(f"{label_dir}: folder of the labels not found, though {image_dir} exists; {source.origin}")

    names: Sequence[str] = sorted(images.keys() | labels.keys())
    if layout.split_file:
        names = _split_names(base / layout.split_file.format(split=layout.splits[split]), source.origin)
    unlabelled = split == "test" and not any(name in labels for name in names)  # such splits have all labels or none
    for kind, other, found, folder, suffix in (
        ("label", "image", names if unlabelled else labels, label_dir, layout.label_suffix),
        ("image", "label", images, image_dir, layout.image_suffixes[0]),
    ):
        missing = [name for name in names if name not in found]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DatasetError(
                f"{folder / (missing[0] + suffix)}: no such {kind}{more}, but the {other}s or the split have it; found "
                f"{len(images)} images, {len(labels)} labels; add the missing {kind} or remove the {other}"
            )
    return [Sample(images[name], None if unlabelled else labels[name]) for name in names], layout.table


def _files(folder: Path, suffixes: Sequence[str], besides: Iterable[Path] = ()) -> dict[str, Path]:
    """Files below a folder by the name they share with their partner: the relative path without the suffix."""
    found: dict[str, Path] = {}
    besides = set(besides)

    for path in walk_files(folder) if folder.is_dir() else ():
        relative = path.relative_to(folder).as_posix()
        suffix = next((suffix for suffix in suffixes if relative.lower().endswith(suffix.lower())), None)
        if suffix is None or path in besides:
            continue
        name = relative[: -len(suffix)]
        if name in found:
            raise DatasetError(f"{path}: has the same base name as {found[name].name}; keep one of the two")
        found[name] = path

    return found


def _split_names(path: Path, origin: str) -> list[str]:
    if not path.is_file():
        raise DatasetError(f"{path}: file with the names of the split not found; {origin}")
    names = [line.split()[0] for line in read_lines(path)[0] if line.strip()]
    if not names:
        raise DatasetError(f"{path}: names no picture; {origin}")
    return names
