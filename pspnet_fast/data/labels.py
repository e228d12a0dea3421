"""Label files as train ids: by class indices of 8 or 16 bits, or by colours; and what the values of one's own mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pspnet_fast.data.classes import IGNORE, INVALID, Color, DatasetError, DatasetInfo, label_table, voc_colormap
from pspnet_fast.data.reading import DEFAULT_READING, ReadOptions, check_label, decoded, opened, raw_mode

# Pillow stretches grey of 2 and 4 bits to 0 .. 255, which is right for images and wrong for indices.
_STRETCHED = {"L;2": 85, "L;4": 17}

Classes = int | Sequence[str] | Mapping[str, Color]
"""A number of classes, their names, or their names with colours."""

IGNORED = "ignore"
"""In a value map the name of what is no class."""


class UnknownLabelError(DatasetError):
    """A label file with values that its table does not know; `counts` are the pixels of each, by its name."""

    def __init__(self, message: str, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.counts = dict(counts or {})


@dataclass(frozen=True)
class ColorTable:
    """Train ids by colour.

    Args:
        codes: int32 [n], ascending, see `color_code`.
        train_ids: int16 [n].
        default: the train id of every other colour; INVALID makes them an error when they are read.
    """

    codes: np.ndarray
    train_ids: np.ndarray
    default: int = INVALID

    @classmethod
    def of(cls, train_ids: Mapping[Color, int], default: int = INVALID) -> ColorTable:
        codes = dict(sorted((color_code(color), train_id) for color, train_id in train_ids.items()))
        return cls(np.array([*codes], np.int32), np.array([*codes.values()], np.int16), default)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Train ids int16 of colour codes."""
        place = np.searchsorted(self.codes, values).clip(max=len(self.codes) - 1)
        return np.where(self.codes[place] == values, self.train_ids[place], np.int16(self.default))


LabelTable = np.ndarray | ColorTable
"""Train ids by index (see `label_table`), or by colour."""


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


def read_label(path: Path, table: LabelTable, options: ReadOptions = DEFAULT_READING) -> Tensor:
    """A label file as uint8 [H, W] of train ids, by the indices or the colours that `table` holds.

    Raises:
        DatasetError: missing or corrupt file, a format with losses, several channels where indices are expected.
        UnknownLabelError: values that `table` does not know, with the pixels of each.
    """
    values = read_values(path, options, colors=isinstance(table, ColorTable))
    if isinstance(table, ColorTable):
        train_ids = table.look_up(values)
    elif values.dtype == np.uint8 and len(table) >= 256:
        train_ids = table[values]
    else:
        known = (values >= 0) & (values < len(table))
        train_ids = np.where(known, table[np.where(known, values, 0)], np.int16(INVALID))
    if train_ids.min(initial=0) == INVALID:
        raise _unknown(path, table, *np.unique(values[train_ids == INVALID], return_counts=True))
    return torch.from_numpy(train_ids.astype(np.uint8))


def read_values(path: Path, options: ReadOptions = DEFAULT_READING, *, colors: bool = False) -> np.ndarray:
    """What a label file holds, [H, W]: indices in the file's integer type (of paletted files too), or colour codes.

    Raises:
        DatasetError: missing or corrupt file, or one that `check_label` refuses.
    """
    with opened(path, options) as picture:
        check_label(path, picture, colors=colors)
        stretch = _STRETCHED.get(raw_mode(picture), 1)
        stored = decoded(path, picture)
        if colors:
            return np.array(stored.convert("RGB").convert("RGBA")).view("<i4")[..., 0] & 0xFFFFFF
        values = np.array(stored)
    return values.astype(np.uint8) if values.dtype == bool else values // stretch if stretch > 1 else values


def _unknown(path: Path, table: LabelTable, values: np.ndarray, pixels: np.ndarray) -> UnknownLabelError:
    names = [value_text(value, colors=isinstance(table, ColorTable)) for value in values.tolist()]
    counts = dict(sorted(zip(names, pixels.tolist(), strict=True), key=lambda item: -item[1]))
    if isinstance(table, ColorTable):
        listed = ", ".join(f"{name} ({count} pixels)" for name, count in [*counts.items()][:5])
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        remedy = "name them in data.classes or data.values, or set data.unknown_labels=ignore"
        return UnknownLabelError(f"{path}: colours that are no class: {listed}{more}; {remedy}", counts)
    return UnknownLabelError(
        f"{path}: label value {', '.join(names[:5])} is outside the classes; "
        f"allowed are {_ranges(np.flatnonzero(table != INVALID))}; correct the file or the classes",
        counts,
    )


def _ranges(values: np.ndarray) -> str:
    """[0, 1, 2, 11, 255] -> '0..2, 11, 255'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _index(value: int | str) -> int:
    if isinstance(value, int) and 0 <= value < 65536:
        return value
    raise ValueError(f"values: {value!r} is no value of an 8- or 16-bit label file; colours belong to labels=colors")


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


def color_code(color: Color) -> int:
    """Red + 256 green + 65536 blue."""
    return color[0] | color[1] << 8 | color[2] << 16


def code_color(code: int) -> Color:
    """The inverse of `color_code`."""
    return code & 255, code >> 8 & 255, code >> 16


def color_text(color: Color) -> str:
    """As in #8000ff."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def value_text(value: int, *, colors: bool) -> str:
    """What a label file holds, in a message: the index, or the colour of a code."""
    return color_text(code_color(value)) if colors else str(value)
