"""One's own data: its classes, what its label files hold, and its split into training and validation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pspnet_fast.data.classes import IGNORE, INVALID, Color, DatasetError, DatasetInfo, label_table, voc_colormap
from pspnet_fast.data.labels import ColorTable, LabelTable, color_text
from pspnet_fast.data.registry import Sample

Classes = int | Sequence[str] | Mapping[str, Color]
"""A number of classes, their names, or their names with colours."""

IGNORED = "ignore"
"""In a value map the name of what is no class."""


@dataclass(frozen=True)
class OwnLabels:
    """The classes of one's own data, and what the values of its label files mean.

    Args:
        classes: their number, names, or names and colours (RGB); at most 255.
        coding: "indices": a value a pixel, of 8 or 16 bits; "colors": the colour of its class.
        values: the class, by name or index, or "ignore", of each value (or colour, as "#rrggbb") in the files; what it
            does not name is unknown. Empty: value i is class i, or the classes' colours.
        ignore_value: the value of pixels that do not count; none where every value is a class.
        reduce_zero_label: value 0 does not count, and value i is class i - 1 (as in ADE20K; mmsegmentation's name).
        unknown: what other values are: an error when they are read, or pixels that do not count.

    Raises:
        ValueError: (from `info` and `table`) the classes are not 1 to 255, names occur twice, a value is given two
            meanings, or its class does not exist.
    """

    classes: Classes
    coding: Literal["indices", "colors"] = "indices"
    values: Mapping[int | str, int | str] = field(default_factory=dict)
    ignore_value: int | None = IGNORE
    reduce_zero_label: bool = False
    unknown: Literal["error", "ignore"] = "error"

    def info(self, name: str) -> DatasetInfo:
        """Names and colours; Pascal VOC's colours where none are given."""
        if isinstance(self.classes, str):
            raise ValueError(f"classes={self.classes!r}: give the number of classes or a sequence of their names")
        count = self.classes if isinstance(self.classes, int) else len(self.classes)
        if not 1 <= count <= IGNORE:
            raise ValueError(f"classes={self.classes!r}: {count} classes; labels of 8 bits hold 1 to {IGNORE}")
        if isinstance(self.classes, Mapping):
            return DatasetInfo(name, tuple(self.classes), tuple(self.classes.values()))
        names = [f"class {i}" for i in range(count)] if isinstance(self.classes, int) else self.classes
        return DatasetInfo(name, tuple(names), voc_colormap(count))

    def table(self) -> LabelTable:
        """Train ids by the values of the label files."""
        default = INVALID if self.unknown == "error" else IGNORE
        if self.coding == "colors":
            return ColorTable.of(self._colors(), default)
        count = len(self.info("").classes)
        if self.values and self.reduce_zero_label:
            raise ValueError("values and reduce_zero_label are two meanings of the same values: leave one out")
        if self.values:
            train_ids = {_index(value): self._train_id(target) for value, target in self.values.items()}
        else:
            train_ids = {index + self.reduce_zero_label: index for index in range(count)}
        if self.reduce_zero_label:
            train_ids[0] = IGNORE
        if self.ignore_value is not None and train_ids.setdefault(self.ignore_value, IGNORE) != IGNORE:
            name = self.info("").classes[train_ids[self.ignore_value]]
            raise ValueError(
                f"ignore_value={self.ignore_value} is also class {name!r}; set it to another value or null"
            )
        return label_table(train_ids, default=default)

    def _colors(self) -> dict[Color, int]:
        if not isinstance(self.classes, Mapping) and not self.values:
            raise ValueError("labels=colors needs the colour of each class: classes={NAME: [R, G, B], …}")
        train_ids: dict[Color, int] = {}
        if isinstance(self.classes, Mapping):
            for index, (name, color) in enumerate(self.classes.items()):
                if train_ids.setdefault(color, index) != index:
                    raise ValueError(f"class {name!r} has the colour {color_text(color)} of another class")
        return train_ids | {parse_color(value): self._train_id(target) for value, target in self.values.items()}

    def _train_id(self, target: int | str) -> int:
        """The train id of a class by its name or index, or of "ignore"."""
        if target == IGNORED:
            return IGNORE
        names = self.info("").classes
        if target in names:
            return names.index(str(target))
        if isinstance(target, int) and 0 <= target < len(names):
            return target
        raise ValueError(f"values: {target!r} is no class; use {IGNORED!r} or one of {', '.join(names[:20])}")


def parse_color(value: object) -> Color:
    """(R, G, B) from "#rrggbb" or a sequence of three numbers."""
    if isinstance(value, str) and len(value) == 7 and value.startswith("#"):
        value = bytes.fromhex(value[1:])
    if (
        not isinstance(value, (list, tuple, bytes))
        or len(value) != 3
        or not all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    ):
        raise ValueError(f"{value!r} is no colour: write #rrggbb, or three numbers from 0 to 255")
    red, green, blue = value
    return red, green, blue


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


def _index(value: int | str) -> int:
    if isinstance(value, int) and 0 <= value < 65536:
        return value
    raise ValueError(f"values: {value!r} is no value of an 8- or 16-bit label file; colours belong to labels=colors")
