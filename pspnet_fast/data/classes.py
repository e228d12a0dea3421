"""What a data set is: its classes, their colours, and the values of its label files.

The public data sets stand here in the order of their train ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torchvision.datasets import Cityscapes

Color = tuple[int, int, int]

IGNORE = 255
"""Train id of the pixels that neither the loss nor the metrics count."""

INVALID = -1
"""Entry of a label table for values that must not occur in a label file."""


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
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
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

    def channel(index: int, number: int) -> int:
        return sum((index >> (3 * bit + number) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count))


def label_table(train_ids: dict[int, int], ignored: tuple[int, ...] = (), default: int = INVALID) -> np.ndarray:
    """An int16 table from the values of a label file to train ids, for 8-bit files or, where values need it, longer.

    `train_ids` maps file values to train ids, `ignored` lists the values that become 255; whatever else a file holds
    gets the `default`: INVALID, an error when it is read, or 255.
    """
    values = [*train_ids, *ignored, 255]
    table = np.full(65536 if default != INVALID else max(values) + 1, default, dtype=np.int16)

    for value in ignored:
        table[value] = IGNORE
    for value, train_id in train_ids.items():
        table[value] = train_id

    table.flags.writeable = False
    return table


# Brostow et al. 2008, the 11 classes and the order of the SegNet tutorial.
CAMVID = DatasetInfo(
    "camvid",
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    (
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)

# Cordts et al. 2016; torchvision lists the classes in the order of their train ids, among others without one.
_CITYSCAPES = [entry for entry in Cityscapes.classes if 0 <= entry.train_id < IGNORE]
CITYSCAPES = DatasetInfo(
    "cityscapes", tuple(entry.name for entry in _CITYSCAPES), tuple(entry.color for entry in _CITYSCAPES)
)
CITYSCAPES_LABEL_IDS = tuple(entry.id for entry in _CITYSCAPES)

# Everingham et al. 2010.
VOC = DatasetInfo(
    "voc",
    (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    voc_colormap(21),
)

# Zhou et al. 2017, the scene parsing benchmark of 2016 (objectInfo150), first of each class's synonyms.
_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister, escalator,
ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool,
stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave,
pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan,
fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
# Black stays free: it is the colour of ignored pixels in the pictures that people compare.
ADE20K = DatasetInfo(
    "ade20k", tuple(name.strip() for name in _ADE20K.replace("\n", " ").split(",")), voc_colormap(151)[1:]
)
