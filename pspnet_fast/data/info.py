"""What a data set is: its classes, their colours, the value that means "leave this pixel out"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]

IGNORE = 255
"""Train id of the pixels that neither the loss nor the metrics count."""


class DatasetError(ValueError):
    """The files on disk are not the data set they should be. The message names the file, the value and the remedy."""


@dataclass(frozen=True)
class DatasetInfo:
    """Classes of a data set, in the order of the train ids.

    Args:
        name: the registry's name.
        classes: one name a class; a label map holds 0 .. len(classes) - 1.
        palette: one RGB colour (0 .. 255) a class.
        ignore_index: the label value of pixels that do not count.

    Raises:
        ValueError: a colour is missing, a class name occurs twice, or `ignore_index` is a class.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = IGNORE

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.palette):
            raise ValueError(
                f"{self.name}: {len(self.classes)} classes but {len(self.palette)} colours; give one a class"
            )
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"{self.name}: class names occur twice: {', '.join(twice)}; give every class its own name")
        if 0 <= self.ignore_index < len(self.classes):
            raise ValueError(
                f"{self.name}: ignore_index={self.ignore_index} is also class '{self.classes[self.ignore_index]}'; "
                f"choose a value outside 0 .. {len(self.classes) - 1}"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def voc_colormap(count: int) -> tuple[Color, ...]:
    """The first `count` colours of Pascal VOC's colour map, black first.

    The bits of the index, three at a time from the lowest, become the red, green and blue bits from the highest down
    (VOC2012 development kit, VOCcolormap): neighbouring indices get distant colours, and all 256 are distinct.
    """
    colors = []

    for index in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colors.append((rgb[0], rgb[1], rgb[2]))

    return tuple(colors)


INVALID = -1
"""Entry of a label table for values that must not occur in a label file."""


def label_table(train_ids: dict[int, int], ignored: tuple[int, ...] = ()) -> np.ndarray:
    """A 256-entry int16 table from the values of a label file to train ids.

    `train_ids` maps file values to train ids, `ignored` lists the values that become 255; whatever else a file holds
    is INVALID and an error when it is read.
    """
    table = np.full(256, INVALID, dtype=np.int16)

    for value in ignored:
        table[value] = IGNORE
    for value, train_id in train_ids.items():
        table[value] = train_id

    table.flags.writeable = False
    return table
