"""Opening data sets, and their samples as tensors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pspnet_fast.data.classes import IGNORE, DatasetError, DatasetInfo, label_table, voc_colormap
from pspnet_fast.data.files import expand, read_lines
from pspnet_fast.data.reading import DEFAULT_READING, ReadOptions, read_header, read_image, read_label
from pspnet_fast.data.registry import DATASETS, Sample, find_samples

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and their label maps.

    `dataset[i]` is (image uint8 [3, H, W] RGB, label uint8 [H, W] of train ids, 255 where a pixel does not count),
    or what `transform(image, label)` makes of them. The label of a sample without one is 255 everywhere.

    Args:
        info: the classes.
        samples: the files.
        table: 256 entries from the values of the label files to train ids (see `label_table`).
        transform: called with every image and label, see `train_transform` and `eval_transform`.
        reading: how the files are read.

    Raises:
        DatasetError: (on access) a file is missing or corrupt, image and label differ in size, or one of them is
            refused by `read_image` or `read_label`.
    """

    def __init__(
        self,
        info: DatasetInfo,
        samples: Sequence[Sample],
        table: np.ndarray,
        transform: Transform | None = None,
        reading: ReadOptions = DEFAULT_READING,
    ) -> None:
        self.info = info
        self.samples = list(samples)
        self.table = table
        self.transform = transform
        self.reading = reading

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.read(index)
        return (image, label) if self.transform is None else self.transform(image, label)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """A sample without the transform."""
        sample = self.samples[index]
        image, label = read_image(sample.image, self.reading), self.read_label(index)
        if label is None:
            label = torch.full(image.shape[1:], IGNORE, dtype=torch.uint8)
        if label.shape != image.shape[1:]:
            raise DatasetError(
                f"{sample.label}: label is {_size(label)} but its image {sample.image} is {_size(image)} "
                f"(width x height); {self._remedy(sample, label)}"
            )
        return image, label

    def read_label(self, index: int) -> Tensor | None:
        """The label of a sample alone, uint8 [H, W]; None where the data set has none."""
        path = self.samples[index].label
        return None if path is None else read_label(path, self.table, self.reading)

    def _remedy(self, sample: Sample, label: Tensor) -> str:
        header = read_header(sample.image, self.reading)
        if header.orientation != 1 and header.stored_size == (label.shape[1], label.shape[0]):
            return (
                f"it fits the stored rows of the image, whose EXIF orientation {header.orientation} turns them for "
                "display: turn the label in the same way, or remove the orientation from the image"
            )
        return "the two must have one size"

    def __repr__(self) -> str:
        return f"SegmentationDataset({self.info.name}, {len(self)} samples, {self.info.num_classes} classes)"


def open_dataset(
    name: str,
    root: str | Path,
    split: str,
    *,
    transform: Transform | None = None,
    list_file: str | Path | None = None,
    classes: int | Sequence[str] | None = None,
    reading: ReadOptions = DEFAULT_READING,
) -> SegmentationDataset:
    """Open a data set by its name in DATASETS: camvid, scenes, cityscapes, ade20k, voc or list.

    Args:
        name: the data set.
        root: its folder; `~` is the home folder.
        split: "train", "val" or "test" (voc also has "trainval").
        transform: see `SegmentationDataset`.
        list_file: for "list" alone: text file of `image label` lines relative to `root`. The labels are train ids.
        classes: for "list" alone: the number of classes (at most 255) or their names.
        reading: how the files are read.

    Raises:
        DatasetError: the files do not match the data set's layout.
        ValueError: `name` is unknown, or list_file and classes are missing, or given to another data set.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"name={name!r} is no data set; {hint}choose from {', '.join(DATASETS)}")
    source, root = DATASETS[name], expand(root)

    if source.info is None:
        if list_file is None or classes is None:
            missing = "list_file" if list_file is None else "classes"
            raise ValueError(f"data set 'list' needs {missing}=; {source.origin}")
        info = _named_classes(name, classes)
        table = label_table({index: index for index in range(info.num_classes)}, (IGNORE,))
        return SegmentationDataset(info, read_list_file(expand(list_file), root, split), table, transform, reading)

    if list_file is not None or classes is not None:
        extra = "list_file" if list_file is not None else "classes"
        raise ValueError(f"{extra}= belongs to data set 'list', not to '{name}'; leave it out or open 'list'")
    samples, table = find_samples(source, root, split)
    return SegmentationDataset(source.info, samples, table, transform, reading)


def read_list_file(list_file: Path, root: Path, split: str) -> list[Sample]:
    """Samples of a semseg list file: `image label` a line, relative to `root`, split at a tab or else at blanks.

    Lines with an image alone are allowed in split "test"; empty lines are skipped.

    Raises:
        DatasetError: no such file, a line that is neither, an image or label that does not exist, or no line at all.
    """
    if not list_file.is_file():
        raise DatasetError(f"{list_file}: list file not found; it is a text file of 'image label' lines")
    samples = []
    lines, encoding = read_lines(list_file)

    for number, line in enumerate(lines, start=1):
        fields = [part for part in (line.strip().split("\t") if "\t" in line else line.split()) if part]
        if not fields:
            continue
        if len(fields) > 2 or (len(fields) == 1 and split != "test"):
            raise DatasetError(
                f"{list_file}:{number}: expected 'image label', got {line.strip()[:200]!r}; "
                "separate the two by a tab if the paths contain blanks"
            )

        paths = [root / part for part in fields]
        for path in paths:
            if not path.is_file():
                doubt = " (the file is not UTF-8; its names were read as Latin-1)" if encoding == "latin-1" else ""
                raise DatasetError(
                    f"{path}: not found, named by {list_file}:{number}{doubt}; paths are relative to root={root}"
                )
        samples.append(Sample(paths[0], paths[1] if len(paths) == 2 else None))

    if not samples:
        raise DatasetError(f"{list_file}: no samples; expected one 'image label' a line, relative to {root}")
    return samples


def _named_classes(name: str, classes: int | Sequence[str]) -> DatasetInfo:
    if isinstance(classes, str):
        raise ValueError(f"classes={classes!r}: give the number of classes or a sequence of their names")
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else tuple(classes)
    if not 1 <= len(names) <= IGNORE:
        raise ValueError(f"classes={classes!r}: {len(names)} classes; labels of 8 bits hold 1 to {IGNORE}")
    return DatasetInfo(name, names, voc_colormap(len(names)))


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"
