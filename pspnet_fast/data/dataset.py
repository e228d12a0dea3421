"""Reading samples: images and label maps from disk, checked, as tensors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pspnet_fast.data.find import find_samples, read_list_file
from pspnet_fast.data.info import IGNORE, INVALID, DatasetError, DatasetInfo, label_table, voc_colormap
from pspnet_fast.data.sources import DATASETS, Sample

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# What Pillow raises for files that are cut off, garbled, or no pictures at all.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and their label maps.

    `dataset[i]` is (image uint8 [3, H, W] RGB, label uint8 [H, W] of train ids, 255 where a pixel does not count),
    or what `transform(image, label)` makes of them. The label of a sample without one is 255 everywhere.

    Args:
        info: the classes.
        samples: the files.
        table: 256 entries from the values of the label files to train ids (see `label_table`).
        transform: called with every image and label, see `train_transform` and `eval_transform`.

    Raises:
        DatasetError: (on access) a file is missing or corrupt, image and label differ in size, the label is no map of
            indices, or it holds a value that `table` does not know.
    """

    def __init__(
        self,
        info: DatasetInfo,
        samples: Sequence[Sample],
        table: np.ndarray,
        transform: Transform | None = None,
    ) -> None:
        self.info = info
        self.samples = list(samples)
        self.table = table
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.samples[index]
        image = read_image(sample.image)

        if sample.label is None:
            label = torch.full(image.shape[1:], IGNORE, dtype=torch.uint8)
        else:
            label = read_label(sample.label, self.table)
            if label.shape != image.shape[1:]:
                raise DatasetError(
                    f"{sample.label}: label is {_size(label)} but its image {sample.image} is {_size(image)} "
                    "(width x height); the two must have one size"
                )

        if self.transform is None:
            return image, label
        return self.transform(image, label)

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
) -> SegmentationDataset:
    """Open a data set by its name in DATASETS: camvid, scenes, cityscapes, ade20k, voc or list.

    Args:
        name: the data set.
        root: its folder.
        split: "train", "val" or "test" (voc also has "trainval").
        transform: see `SegmentationDataset`.
        list_file: for "list" alone: text file of `image label` lines relative to `root`. The labels are train ids.
        classes: for "list" alone: the number of classes (at most 255) or their names.

    Raises:
        DatasetError: the files do not match the data set's layout.
        ValueError: `name` is unknown, or list_file and classes are missing, or given to another data set.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"name={name!r} is no data set; {hint}choose from {', '.join(DATASETS)}")
    source, root = DATASETS[name], Path(root)

    if source.info is None:
        if list_file is None or classes is None:
            missing = "list_file" if list_file is None else "classes"
            raise ValueError(f"data set 'list' needs {missing}=; {source.origin}")
        info = _named_classes(name, classes)
        table = label_table({index: index for index in range(info.num_classes)}, (IGNORE,))
        return SegmentationDataset(info, read_list_file(Path(list_file), root, split), table, transform)

    if list_file is not None or classes is not None:
        extra = "list_file" if list_file is not None else "classes"
        raise ValueError(f"{extra}= belongs to data set 'list', not to '{name}'; leave it out or open 'list'")
    samples, table = find_samples(source, root, split)
    return SegmentationDataset(source.info, samples, table, transform)


def read_image(path: Path) -> Tensor:
    """An image file as uint8 [3, H, W], RGB, values 0 .. 255. Raises DatasetError if it is missing or corrupt."""
    with _decoded(path) as picture:
        array = np.array(picture.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def read_label(path: Path, table: np.ndarray) -> Tensor:
    """A label file as uint8 [H, W] of train ids. The indices of paletted files are read, not their colours.

    Raises:
        DatasetError: missing or corrupt file, several channels, or a value that `table` marks INVALID.
    """
    with _decoded(path) as picture:
        if picture.mode not in ("L", "P", "1") and not picture.mode.startswith("I"):
            raise DatasetError(
                f"{path}: label has mode {picture.mode}, expected one channel of class indices; "
                "save it as an 8-bit grey or paletted PNG (a colour picture of the classes is no label)"
            )
        values = np.array(picture)

    if values.dtype != np.uint8:  # 1- and 16-bit files: as good as any as long as their values are
        if values.max(initial=0) > 255 or values.min(initial=0) < 0:
            raise DatasetError(
                f"{path}: label value {_outside(values, 0, 255)} does not fit 8 bits; save class indices"
            )
        values = values.astype(np.uint8)

    train_ids = table[values]
    if train_ids.min() == INVALID:
        wrong = np.unique(values[train_ids == INVALID])
        raise DatasetError(
            f"{path}: label value {', '.join(map(str, wrong[:5]))} is outside the classes; "
            f"allowed are {_ranges(np.flatnonzero(table != INVALID))}; correct the file or the classes"
        )
    return torch.from_numpy(train_ids.astype(np.uint8))


def _decoded(path: Path) -> Image.Image:
    """The file, opened and decoded to its last row (opening alone reads the header and misses truncation)."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise DatasetError(f"{path}: not found; it was there when the data set was opened") from None
    except _DECODE_ERRORS as error:
        raise DatasetError(
            f"{path}: corrupt or no picture ({error}); fetch the file again or remove the pair"
        ) from error
    return picture


def _named_classes(name: str, classes: int | Sequence[str]) -> DatasetInfo:
    if isinstance(classes, str):
        raise ValueError(f"classes={classes!r}: give the number of classes or a sequence of their names")
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else tuple(classes)
    if not 1 <= len(names) <= IGNORE:
        raise ValueError(f"classes={classes!r}: {len(names)} classes; labels of 8 bits hold 1 to {IGNORE}")
    return DatasetInfo(name, names, voc_colormap(len(names)))


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"


def _outside(values: np.ndarray, low: int, high: int) -> int:
    return int(values[(values < low) | (values > high)].flat[0])


def _ranges(values: np.ndarray) -> str:
    """[0, 1, 2, 11, 255] -> '0..2, 11, 255'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
