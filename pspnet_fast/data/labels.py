"""Label files as train ids: by class indices of 8 or 16 bits, or by colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pspnet_fast.data.classes import INVALID, Color, DatasetError
from pspnet_fast.data.reading import DEFAULT_READING, ReadOptions, check_label, decoded, opened, raw_mode

# Pillow stretches grey of 2 and 4 bits to 0 .. 255, which is right for images and wrong for indices.
_STRETCHED = {"L;2": 85, "L;4": 17}


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
        codes = {color_code(color): train_id for color, train_id in train_ids.items()}
        ordered = sorted(codes)
        return cls(np.array(ordered, np.int32), np.array([codes[code] for code in ordered], np.int16), default)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Train ids int16 of colour codes."""
        place = np.searchsorted(self.codes, values).clip(max=len(self.codes) - 1)
        return np.where(self.codes[place] == values, self.train_ids[place], np.int16(self.default))


LabelTable = np.ndarray | ColorTable
"""Train ids by index (see `label_table`), or by colour."""


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
