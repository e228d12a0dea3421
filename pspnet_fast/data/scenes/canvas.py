"""The canvas of a scene: a picture and its label map, painted together."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Color = tuple[float, float, float]

OVERSAMPLE = 2
"""Side of the block of canvas pixels that is averaged into one pixel of the picture."""


class Label(enum.IntEnum):
    """CamVid's classes."""

    SKY = 0
    BUILDING = 1
    POLE = 2
    ROAD = 3
    PAVEMENT = 4
    TREE = 5
    SIGN = 6
    FENCE = 7
    CAR = 8
    PEDESTRIAN = 9
    BICYCLIST = 10
    UNLABELLED = 11


class Shape(NamedTuple):
    """A flat shape: the points of a polygon or a line, or two corners of an ellipse's box, in canvas pixels."""

    kind: Literal["polygon", "ellipse", "ring", "line"]
    points: Sequence[Point]
    color: Color
    width: float = 0.0  # of lines and rings


class Canvas:
    """Picture (float32, 0 .. 255) and label map of a scene, at OVERSAMPLE times its size.

    Args:
        rng: source of the texture.
        size: (height, width) of the finished scene.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.height, self.width = size[0] * OVERSAMPLE, size[1] * OVERSAMPLE
        self.image = np.zeros((self.height, self.width, 3), np.float32)
        self.label = np.full((self.height, self.width), Label.UNLABELLED, np.uint8)
        self.haze: Color = (200.0, 205.0, 210.0)
        self.haze_range = 100.0

        # Texture that every shape shows a little of: grain of a pixel or two, and stains of an eighth of the picture.
        grain = rng.standard_normal((size[0], size[1]), np.float32).repeat(OVERSAMPLE, 0).repeat(OVERSAMPLE, 1)
        self._grain = 0.6 * grain + 0.8 * rng.standard_normal(grain.shape, np.float32)
        self._stain = smooth_noise(rng, (self.height, self.width), cells=max(4, self.height // 24))

    def paint(
        self,
        shapes: Sequence[Shape],
        label: Label | None,
        *,
        depth: float = 0.0,
        grain: float = 0.04,
        stain: float = 0.06,
    ) -> None:
        """Paint shapes over each other, the last on top. Label None leaves the label map as it is.

        `depth` is the distance in metres, for the haze; `grain` and `stain` say how strongly texture shows.
        """
        if not shapes:
            return
        box = self._bounds(shapes)
        if box is None:
            return
        left, top, right, bottom = box
        rows, columns = slice(top, bottom), slice(left, right)

        # One index map for all shapes, so that a tree of sixty leaves costs one pass over its pixels.
        index = Image.new("I", (right - left, bottom - top))
        pencil = ImageDraw.Draw(index)
        for number, shape in enumerate(shapes, start=1):
            _draw(pencil, shape, number, (left, top))
        indices = np.asarray(index)
        colors = np.array([(0.0, 0.0, 0.0), *(shape.color for shape in shapes)], np.float32)

        self.blend(rows, columns, colors[indices], indices > 0, label, depth=depth, grain=grain, stain=stain)

    def blend(
        self,
        rows: slice,
        columns: slice,
        color: np.ndarray,
        mask: np.ndarray,
        label: Label | np.ndarray | None,
        *,
        depth: float | np.ndarray = 0.0,
        grain: float = 0.04,
        stain: float = 0.06,
    ) -> None:
        """Put colours [h, w, 3] into a part of the canvas where `mask` [h, w] says so, textured and hazy."""
        texture = 1 + grain * self._grain[rows, columns] + stain * self._stain[rows, columns]
        clear = np.asarray(np.exp(-np.asarray(depth, np.float32) / self.haze_range))[..., None]
        color = color * texture[..., None] * clear + np.asarray(self.haze, np.float32) * (1 - clear)

        np.copyto(self.image[rows, columns], color, where=mask[..., None], casting="same_kind")
        if label is not None:
            np.copyto(self.label[rows, columns], np.asarray(label, np.uint8), where=mask)

    def shade(self, points: Sequence[Point], strength: float, blur: float = 2.0) -> None:
        """Darken a polygon, with a soft edge: a shadow. Labels stay."""
        box = self._bounds([Shape("polygon", points, (0, 0, 0))], margin=int(2 * blur) + 1)
        if box is None or strength <= 0:
            return
        left, top, right, bottom = box

        shadow = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(shadow).polygon([(x - left, y - top) for x, y in points], fill=255)
        soft = np.asarray(shadow.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255
        self.image[top:bottom, left:right] *= 1 - strength * soft[..., None]

    def _bounds(self, shapes: Sequence[Shape], margin: int = 1) -> tuple[int, int, int, int] | None:
        """The pixels that the shapes may touch: left, top, right, bottom; None if they are off the canvas."""
        xs = [x for shape in shapes for x, _ in shape.points]
        ys = [y for shape in shapes for _, y in shape.points]
        margin += int(max(shape.width for shape in shapes)) + 1
        left, right = max(0, int(min(xs)) - margin), min(self.width, int(max(xs)) + margin)
        top, bottom = max(0, int(min(ys)) - margin), min(self.height, int(max(ys)) + margin)
        return (left, top, right, bottom) if left < right and top < bottom else None


def _draw(pencil: ImageDraw.ImageDraw, shape: Shape, number: int, corner: tuple[int, int]) -> None:
    points = [(x - corner[0], y - corner[1]) for x, y in shape.points]
    width = max(1, round(shape.width))

    if shape.kind == "polygon":
        pencil.polygon(points, fill=number)
    elif shape.kind == "line":
        pencil.line(points, fill=number, width=width, joint="curve")
    else:
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*points, strict=True))
        if shape.kind == "ellipse":
            pencil.ellipse((x0, y0, x1, y1), fill=number)
        else:
            pencil.ellipse((x0, y0, x1, y1), outline=number, width=width)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: int, octaves: int = 3) -> np.ndarray:
    """Smooth noise [h, w] in about -1 .. 1: random grids of ever finer cells, interpolated and added up."""
    total = np.zeros(size, np.float32)

    for octave in range(octaves):
        rows = max(2, cells * 2**octave)
        columns = max(2, rows * size[1] // size[0])
        grid = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
        total += np.asarray(grid.resize((size[1], size[0]), Image.Resampling.BICUBIC)) / 2**octave

    return total


def shades(color: Color, factor: float) -> Color:
    """A colour made darker (below 1) or lighter (above 1)."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)
