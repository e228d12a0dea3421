"""Opening data sets, their samples as tensors, and splits of samples that come without."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pspnet_fast.data.classes import IGNORE, DatasetError, DatasetInfo
from pspnet_fast.data.files import expand, read_lines
from pspnet_fast.data.labels import Classes, LabelTable, OwnLabels, read_label
from pspnet_fast.data.reading import DEFAULT_READING, ReadOptions, read_header, read_image
from pspnet_fast.data.registry import DATASETS, DatasetSource, Layout, Sample, find_samples

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and their label maps.

    `dataset[i]` is (image uint8 [3, H, W] RGB, label uint8 [H, W] of train ids, 255 where a pixel does not count),
    or what `transform(image, label)` makes of them. The label of a sample without one is 255 everywhere.

    Args:
        info: the classes.
        samples: the files.
        table: from the values of the label files to train ids: see `label_table`, or a `ColorTable`.
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
        table: LabelTable,
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
    classes: Classes | OwnLabels | None = None,
    layout: Layout | None = None,
    val_fraction: float = 0.0,
    split_seed: int = 0,
    held_out: Collection[str] = (),
    reading: ReadOptions = DEFAULT_READING,
) -> SegmentationDataset:
    """Open a data set by its name in DATASETS: camvid, scenes, cityscapes, ade20k, voc, or one's own by list or folder.

    Args:
        name: the data set.
        root: its folder; `~` is the home folder.
        split: "train", "val" or "test" (voc also has "trainval"; "folder" has what its folders are called).
        transform: see `SegmentationDataset`.
        list_file: for "list" alone: text file of `image label` lines relative to `root`.
        classes: for "list" and "folder": their number (at most 255), their names, or an `OwnLabels`, which also says
            what the values of the label files mean; otherwise they are train ids, and 255.
        layout: for "folder" alone: where its images and labels lie, and the table of their values.
        val_fraction, split_seed, held_out: for "list" and "folder" without splits of their own: see `split_samples`.
        reading: how the files are read.

    Raises:
        DatasetError: the files do not match the data set's layout.
        ValueError: `name` is unknown, or what a data set of one's own needs is missing, or given to another data set.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"name={name!r} is no data set; {hint}choose from {', '.join(DATASETS)}")
    source, root = DATASETS[name], expand(root)
    owners = {"list_file": ("list",), "classes": ("list", "folder"), "layout": ("folder",)}
    for key, value in {"list_file": list_file, "classes": classes, "layout": layout}.items():
        if value is None and name in owners[key]:
            raise ValueError(f"data set '{name}' needs {key}=; {source.origin}")
        if value is not None and name not in owners[key]:
            owner = " or ".join(f"'{owner}'" for owner in owners[key])
            raise ValueError(f"{key}= belongs to data set {owner}, not to '{name}'; leave it out")
    if source.info is not None:
        samples, table = find_samples(source, root, split)
        return SegmentationDataset(source.info, samples, table, transform, reading)

    assert classes is not None
    own = classes if isinstance(classes, OwnLabels) else OwnLabels(classes)
    info = own.info(name)
    if layout is not None:
        samples, table = find_samples(DatasetSource(info, (layout,), source.origin), root, split)
    else:
        assert list_file is not None
        samples, table = read_list_file(expand(list_file), root, split), own.table()
    if val_fraction:
        samples = split_samples(samples, root, split, fraction=val_fraction, seed=split_seed, held_out=held_out)
    return SegmentationDataset(info, samples, table, transform, reading)


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


def split_samples(
    samples: Sequence[Sample], root: Path, split: str, *, fraction: float, seed: int, held_out: Collection[str] = ()
) -> list[Sample]:
    """The samples of "train" or "val" where the files themselves say nothing of a split; "all" are both.

    Args:
        fraction: of the samples that are held out for validation, at least one: those whose names have the lowest
            digests. A function of the names and the seed alone, so that every process and a later evaluation agree.
        held_out: names that an earlier split wrote down (see `sample_names`); taken instead, if any of them exists.

    Raises:
        DatasetError: an unknown split, or too few samples to split.
    """
    if split not in ("train", "val", "all"):
        raise DatasetError(f"split {split!r} does not exist; an automatic split has 'train', 'val' and 'all'")
    names = sample_names(samples, root)
    validation = set(held_out) & set(names)
    if not validation:
        count = max(1, round(fraction * len(names)))
        if count >= len(names):
            raise DatasetError(
                f"{root}: {len(names)} samples, of which {count} would be held out; none is left to train. Add "
                "samples, or do without validation: val_split=null and val_fraction=0"
            )
        validation = set(sorted(names, key=lambda name: _digest(seed, name))[:count])
    wanted = {"train": (False,), "val": (True,), "all": (False, True)}[split]
    return [sample for sample, name in zip(samples, names, strict=True) if (name in validation) in wanted]


def sample_names(samples: Sequence[Sample], root: Path) -> list[str]:
    """The paths of the images below the root."""
    return [Path(os.path.relpath(sample.image, root)).as_posix() for sample in samples]


def _digest(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"
