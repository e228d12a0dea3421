"""Street scenes drawn by a seeded generator, with CamVid's classes: a data set that needs no download."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pspnet_fast.data.classes import DatasetError

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, UNLABELLED = range(12)
VERSION, MARKER = 2, "scenes.json"  # the version changes whenever a seed gives another picture
SMALLEST, OVERSAMPLE, NEAR, FAR = 48, 2, 1.2, 400.0  # pixels each way; drawn pixels to one; metres ahead that show
TEXTURE = np.array([0.01, 0.08, 0.05, 0.09, 0.09, 0.24, 0.03, 0.08, 0.03, 0.07, 0.07, 0.05])  # strength, by class
BLACK, WHITE, RED, YELLOW = (28, 28, 30), (232, 232, 226), (196, 30, 36), (240, 186, 30)
WALLS = ((150, 84, 66), (206, 190, 160), (188, 184, 176), (146, 148, 152), (118, 92, 80), (196, 164, 120))
LEAVES = ((70, 108, 48), (92, 122, 58), (56, 88, 52), (118, 128, 56), (150, 118, 48))
PAINTS = ((176, 28, 30), (32, 58, 120), (210, 212, 214), (148, 152, 156), (34, 36, 40), (58, 96, 70), YELLOW)
STONES, SKINS = ((158, 150, 140), (140, 140, 142), (150, 122, 108)), ((224, 178, 148), (150, 104, 80), (92, 62, 46))
METAL, ASPHALT, KERB, GLASS, BARK = (118, 122, 122), (100, 100, 104), (158, 158, 156), (58, 68, 80), (88, 70, 54)
# Of the sky: colours at its top and at the horizon, part that is clouds; and the colour of the light.
LIGHTS = (
    ((78, 130, 205), (188, 212, 234), 0.3, (1.18, 1.14, 1.06)),
    ((178, 186, 194), (216, 220, 222), 0.9, (1.0, 1.03, 1.06)),
    ((96, 112, 168), (244, 196, 150), 0.35, (1.1, 0.96, 0.8)),
)
# Figures that face the camera: shapes, the last on top, each with kind, colour (a number is a cloth of `_Scene.figure`;
# 5 is metal, a pole), width of the line, and points (x, y) or corners of a box. All lengths are parts of the height.
E, L, P, R = "ellipse", "line", "polygon", "rectangle"
RIM = [(0.2 * math.cos(t), 0.2 + 0.2 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 20)]
PERSON = (
    (L, 1, 0.09, (-0.1, 0), (-0.05, 0.25), (0, 0.48), (0.07, 0.25), (0.08, 0)),
    (P, 0, 0, (-0.1, 0.4), (0.1, 0.4), (0.12, 0.8), (0, 0.87), (-0.12, 0.8)),
    *((L, 2, 0.06, (0.11, 0.8), (0.1, 0.5)), (E, 3, 0, (-0.05, 0.99), (0.05, 0.86))),
)
CYCLIST = (
    *((L, 4, 0.035, *((x + hub, y) for x, y in RIM)) for hub in (-0.3, 0.3)), (L, 2, 0.05, (0.09, 0.8), (0.25, 0.6)),
    (L, 2, 0.03, (-0.3, 0.2), (-0.1, 0.46), (0.2, 0.47), (0, 0.2)), (L, 1, 0.08, (-0.1, 0.54), (0.1, 0.4), (0, 0.15)),
    (P, 0, 0, (-0.16, 0.52), (-0.02, 0.51), (0.15, 0.8), (0.08, 0.88), (0, 0.84)), (E, 3, 0, (0.07, 1), (0.21, 0.84)),
)  # fmt: skip
LAMP = ((L, 5, 0.028, (0, 0), (0, 1), (0.2, 1.04)), (L, 5, 0.05, (0, 0), (0, 0.14)), (E, 5, 0, (0.15, 1.06), (0.26, 1)))
BIN, POST = ((R, 0, 0, (-0.25, 0), (0.25, 1)),), (L, 5, 0.045, (0, 0), (0, 1))
SIGNS = (
    (POST, (E, RED, 0, (-0.17, 1.07), (0.17, 0.73)), (E, WHITE, 0, (-0.12, 1.02), (0.12, 0.78))),
    (POST, (P, RED, 0, (-0.2, 0.76), (0.2, 0.76), (0, 1.12)), (P, WHITE, 0, (-0.11, 0.81), (0.11, 0.81), (0, 1.01))),
    (POST, (R, BLACK, 0, (-0.1, 0.7), (0.1, 1.2)), (E, RED, 0, (-0.06, 1.05), (0.06, 1.17))),
)
CAR_END = (  # below the windows, 1 m high
    *((R, BLACK, 0, (x, 0.05), (x + 0.28, 0.4)) for x in (-0.9, 0.62)),
    *((R, 6, 0, (-0.9, 0.25), (0.9, 1)), (R, WHITE, 0, (-0.26, 0.5), (0.26, 0.62))),
    *((R, 7, 0, (x, 0.68), (x + 0.26, 0.86)) for x in (-0.86, 0.6)),
)
CAR_SIDES = (  # from the near bumper over the roof: metres from the near end, height
    ((0, 0.25), (0, 1), (0.6, 1.02), (1.14, 1.44), (2.5, 1.45), (3.2, 1.02), (4.4, 0.84), (4.4, 0.3)),
    ((0, 0.25), (0, 1), (0.05, 1.1), (0.4, 1.7), (3.0, 1.75), (3.8, 1.12), (4.6, 0.95), (4.6, 0.3)),
)


def draw_scene(seed: int | tuple[int, ...], size: tuple[int, int] = (180, 240)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a street scene: the same picture, bit for bit, for the same seed (one or several numbers) and size.

    Returns:
        image uint8 [h, w, 3], RGB; label uint8 [h, w], CamVid's classes 0 .. 10 and 11 for unlabelled.

    Raises:
        ValueError: `size` (height, width) is below 48 pixels.
    """
    if min(size) < SMALLEST:
        raise ValueError(f"size={size}: a street needs at least {SMALLEST} pixels each way")
    scene = _Scene(np.random.default_rng(seed), size)
    for _, draw in sorted(scene.items(), key=lambda item: -item[0]):  # from the back to the front
        draw()
    return scene.photograph()


class _Scene:
    """Picture and label map, painted together; x to the right, y up, z ahead of a pinhole camera, in metres."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.height, self.width = rng, size[0] * OVERSAMPLE, size[1] * OVERSAMPLE
        self.image, self.label = (Image.new(mode, (self.width, self.height)) for mode in ("RGB", "L"))
        self.brush, self.marker = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.label)
        self.focal = rng.uniform(0.72, 0.95) * max(self.width, 1.2 * self.height)
        self.center = self.width * rng.uniform(0.38, 0.62), self.height * rng.uniform(0.4, 0.52)
        self.eye, self.haze = rng.uniform(1.35, 1.75), rng.uniform(90, 240)  # metres; a colour is 63% haze there
        self.top, self.horizon, self.clouds, self.tint = LIGHTS[rng.choice(3, p=[0.6, 0.2, 0.2])]
        self.sun = int(rng.choice([-1, 1]) * (self.clouds < 0.9))  # its side of the street; 0: overcast
        road, at, self.end = rng.uniform(6.4, 11), rng.uniform(0.3, 0.7), rng.uniform(60, 130)
        self.kerb = {-1: -road * at, 1: road * (1 - at)}
        self.wall = {side: self.kerb[side] + side * rng.uniform(2.2, 4.5) for side in (-1, 1)}

    def draw(self, kind: str, points: Sequence[Any], color: Any, label: int | None, width: float = 0) -> None:
        """A shape of ImageDraw; the first of the points (x, y, z) says how hazy it is. Without a colour: a shadow."""
        z, (cx, cy), eye = points[0][2], self.center, self.eye
        pixels = [(cx + (s := self.focal / max(z, NEAR)) * x, cy + s * (eye - y)) for x, y, z in points]
        pixels = [tuple(map(min, *pixels)), tuple(map(max, *pixels))] if kind in (E, R) else pixels
        style = {"width": max(1, round(width * s))}  # of lines; the outlines of other shapes are not drawn
        mixed = np.subtract(BLACK if color is None else color, self.horizon) * math.exp(-z / self.haze) + self.horizon
        ink = (*mixed.clip(0, 255).astype(int).tolist(), 90 if color is None else 255)
        getattr(self.brush, kind)(pixels, fill=ink, **style)
        if label is not None:
            getattr(self.marker, kind)(pixels, fill=label, **style)

    def box(self, x: Any, y: Any, z: Any, color: Any, label: int | None = None) -> None:
        """An upright or lying rectangle: two of x, y, z are (from, to)."""
        (x0, x1), (y0, y1), (z0, z1) = (v if isinstance(v, tuple) else (v, v) for v in (x, y, z))
        middle = ((x1, y0, z0), (x0, y1, z1)) if x0 != x1 else ((x0, y1, z0), (x0, y0, z1))
        self.draw(P, [(x0, y0, z0), middle[0], (x1, y1, z1), middle[1]], color, label)

    def figure(self, kinds: Any, label: int, tall: float, turn: float, x: float, z: float, *more: Any) -> None:
        """One of several figures; `turn` 0 turns it at random."""
        tall, turn = tall * self.rng.uniform(0.9, 1.1), turn or self.rng.choice([-1, 1]) * self.rng.uniform(0.6, 1.1)
        coat, legs = (self.rng.uniform(40, 190) + self.rng.choice([18, 75]) * self.rng.uniform(-1, 1, 3) for _ in "12")
        cloths = (coat, 0.6 * legs, 0.75 * coat, self.pick(*SKINS), BLACK, self.pick(METAL, low=0.5), *more)
        for kind, color, width, *points in kinds[self.rng.integers(len(kinds))]:
            ink, drawn = cloths[color] if isinstance(color, int) else color, POLE if color == 5 else label
            self.draw(kind, [(x + turn * dx * tall, dy * tall, z) for dx, dy in points], ink, drawn, width * tall)

    def pick(self, *colors: Any, low: float = 0.85, high: float = 1.15) -> Any:
        """One of the colours, darker or lighter."""
        return np.multiply(colors[self.rng.integers(len(colors))], self.rng.uniform(low, high))

    def noise(self, cells: int) -> np.ndarray:
        """Smooth noise of the size of the canvas, about -1 .. 1."""
        total = np.zeros((self.height, self.width), np.float32)
        for size in (cells, 2 * cells, 4 * cells, 8 * cells):
            grid = self.rng.uniform(-1, 1, (size, size * self.width // self.height + 1)).astype(np.float32)
            total += np.asarray(Image.fromarray(grid).resize(self.image.size, Image.Resampling.BICUBIC)) * cells / size
        return total

    def sky(self) -> None:
        """Gradient and clouds; distant trees close the street."""
        down = np.clip(np.arange(self.height) / self.center[1], 0, 1)[:, None, None] ** 0.8
        cover = np.clip((self.noise(2) - (0.7 - 1.4 * self.clouds)) * 1.2, 0, 0.9)[..., None]
        sky = (np.multiply(self.top, 1 - down) + np.multiply(self.horizon, down)) * (1 - cover) + 235 * cover
        self.image.paste(Image.fromarray(sky.astype(np.uint8)))
        for x in np.arange(-60, 60, 4):
            self.draw(E, [(x, self.rng.uniform(4, 12), self.end), (x + 7, -9, self.end)], self.pick(*LEAVES), TREE)

    def ground(self) -> None:
        """Pavement, kerbs and road in rows of slightly different colour, markings, and the shadow of the houses."""
        rng, left, right, paint = self.rng, self.kerb[-1], self.kerb[1], self.pick(WHITE, WHITE, YELLOW)
        surfaces = ((-60.0, 60.0, PAVEMENT, self.pick(*STONES)), (left - 0.2, right + 0.2, PAVEMENT, KERB))
        for x0, x1, label, color in (*surfaces, (left, right, ROAD, self.pick(ASPHALT, low=0.7, high=1.25))):
            for z in (FAR, *np.geomspace(60, 2, 40)):
                self.box((x0, x1), 0, (NEAR, z), self.pick(color, low=0.94, high=1.06), label)
        lines = [((left + right) / 2, 0.16, z, z + 3) for z in np.arange(rng.uniform(-6, 0), 90, 6)]
        lines += [(x, 0.12, NEAR, 90) for x in (left + 0.4, right - 0.4)] * int(rng.integers(2))
        lines += [(x, 0.5, z, z + 3.2) for z in rng.uniform(6, 40, 1) for x in np.arange(left + 0.5, right - 0.3, 1)]
        for x, wide, z0, z1 in lines:
            self.box((x - wide / 2, x + wide / 2), 0, (z0, z1), paint)
        if self.sun:
            self.box((self.wall[1] * rng.uniform(-1, 1), self.sun * 60), 0, (NEAR, FAR), None)

    def items(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """What there is to draw, with its distance: sky, ground, and what stands or moves along both sides."""
        rng, figure = self.rng, partial(partial, self.figure)
        yield from ((math.inf, self.sky), (FAR, self.ground))
        for side in (-1, 1):
            kerb, wall, z = self.kerb[side], self.wall[side], rng.uniform(-4, 2)
            while z < self.end:  # houses; in the gaps trees behind a fence
                near, z, house = max(z, NEAR), z + rng.uniform(7, 16), rng.random() < 0.78
                yield z, partial(self.house, side, near, z) if house else partial(self.fence, z - near, wall, near)
                for far in () if house else np.arange(max(near, 4), z, 4.5):
                    yield z + 0.1 + far / 1e3, partial(self.tree, wall + side * rng.uniform(2, 5), far)
            places: tuple[tuple[Any, float, Callable[..., None]], ...] = (
                (np.arange(rng.uniform(5, 12), 90, 10) * rng.integers(2), 0.8, self.tree),
                (np.arange(rng.uniform(5, 16), 80, 16), 0.5, figure((LAMP,), POLE, 6.5, -side)),
                (rng.uniform(5, 30, rng.integers(1, 4)), 0.5, figure(SIGNS, SIGN, 2.8, 1)),
                (rng.uniform(5, 30, rng.integers(0, 3)), 0.7, figure((BIN,), UNLABELLED, 0.9, 1)),
                (rng.uniform(3, 14, int(rng.random() < 0.35)), 0.3, partial(self.fence, 10)),
                (rng.uniform(4.5, 28, rng.integers(2, 7)), rng.uniform(1, 2.2), figure((PERSON,), PEDESTRIAN, 1.7, 0)),
                (rng.uniform(6, 26, rng.integers(0, 3)), -2.2, figure((CYCLIST,), BICYCLIST, 1.75, 0)),
                (np.arange(rng.uniform(4, 14), 60, 6.4) * rng.integers(2), -1.1, partial(self.car, False)),
                (rng.uniform(9, 60, rng.integers(0, 3)), -3.2, partial(self.car, side < 0)),
            )
            yield from ((z, partial(draw, kerb + side * x, z)) for zs, x, draw in places for z in zs if z > 0)

    def house(self, side: int, z0: float, z1: float) -> None:
        """A gable, courses of stone, and windows in frames; below, doors or shops."""
        rng, x, lit, sill = self.rng, self.wall[side], (1.06, 0.9, 0.64)[1 + side * self.sun], self.rng.uniform(0.7, 1)
        color, storeys, shop, half = self.pick(*WALLS), rng.integers(2, 7), rng.random() < 0.45, rng.uniform(0.18, 0.34)
        self.box((x, x + side * 14), (0, 3.1 * storeys + 0.6), z0, self.pick(color, low=0.78, high=0.84), BUILDING)
        for y in np.arange(3.1 * storeys + 0.6, 0, -0.5):
            self.box(x, (0, y), (z0, z1), self.pick(color, low=0.93 * lit, high=1.07 * lit), BUILDING)
        count, frame = max(2, round((z1 - z0) / rng.uniform(2, 3.4))), self.pick(WHITE, WALLS[4])
        for storey, number in np.ndindex(storeys, count):
            z, wide, y0 = z0 + (number + 0.5) * (z1 - z0) / count, half * (z1 - z0) / count, 3.1 * storey + sill
            pane, y1 = self.pick(GLASS, low=0.5 * lit, high=rng.choice([1.1, 2]) * lit), 3.1 * storey + 2.5
            if storey == 0 and (shop or number % 3 == 1):  # shop windows, or a door
                wide, y0 = wide * 0.44 / half if shop else wide, 0.1
            self.box(x, (y0 - 0.08, y1 + 0.08), (z - wide - 0.08, z + wide + 0.08), frame)
            self.box(x, (y0, y1), (z - wide, z + wide), pane)

    def fence(self, length: float, x: float, z: float) -> None:
        """Boards, or bars that one sees through; labelled as a whole, as in CamVid."""
        height, fill, pitch = self.rng.uniform(1.1, 1.9), self.rng.choice([0.3, 0.9]), self.rng.uniform(0.18, 0.3)
        color = self.pick((124, 92, 62), (150, 128, 98), BLACK, (52, 74, 58), WHITE)
        self.box(x, (0, height), (z, z + length), None, FENCE)
        for at in np.arange(z, z + length - pitch, pitch):
            self.box(x, (0, height), (at, at + fill * pitch), self.pick(color))

    def tree(self, x: float, z: float) -> None:
        """A trunk, and a crown of clumps, lit from above and from the side of the sun."""
        rng, height, radius, leaf = self.rng, self.rng.uniform(4.5, 9.5), self.rng.uniform(1.3, 2.6), self.pick(*LEAVES)
        self.draw(L, [(x, 0, z), (x, height - radius, z)], self.pick(BARK), TREE, 0.3)
        for part in np.linspace(0, 1, int(np.clip(radius * self.focal / z, 16, 90))):
            angle, far, size = *(rng.random(2) ** (1, 0.5) * (6.3, radius)), radius * (rng.uniform(0.2, 0.4) - part / 5)
            dx, dy = math.cos(angle) * far, math.sin(angle) * far
            corners = [(x + dx + end * size, height - radius + dy + 0.8 * end * size, z) for end in (-1, 1)]
            lit = 0.7 + (0.34 * dy + 0.2 * self.sun * dx) / radius
            self.draw(E, corners, self.pick(leaf, low=lit, high=lit + 0.4), TREE)

    def car(self, oncoming: bool, x: float, z: float) -> None:
        """The flank that faces the camera, with windows and wheels, and the near end: boot or bonnet."""
        outline, color, side = CAR_SIDES[self.rng.integers(2)], self.pick(*PAINTS), -0.9 if x > 0 else 0.9
        (a, low), (b, top), (c, _), (d, end) = outline[2:6]
        sill, top, glass = max(low, end) + 0.03, top - 0.08, self.pick(GLASS, low=0.8, high=1.3)

        def shape(ink: Any, *points: tuple[float, float, float]) -> None:  # across, along, up; the roof is narrower
            self.draw(P, [(x + a * (1 - 0.25 * max(0, y - 1)), y, z + dz) for a, dz, y in points], ink, CAR)

        self.box((x - 1, x + 1), 0, (z - 0.2, z + outline[-1][0]), None)
        shape(0.8 * color, *((side, *point) for point in outline))
        shape(glass, (side, a + 0.2, sill), (side, b + 0.1, top), (side, c - 0.1, top), (side, d - 0.2, sill))
        for axle in (0.8, 0.8 * outline[-1][0]):
            shape(BLACK, *((side, axle + 1.65 * dz, 1.65 * dy) for dz, dy in RIM))
        for k, wide, ink in ((1, 0.9, color), (2, 0.9, color), (2, 0.8, glass)):
            shape(ink, *((across * wide, *outline[i]) for across, i in ((-1, k), (1, k), (1, k + 1), (-1, k + 1))))
        self.figure((CAR_END,), CAR, 1, 1, x, z, color, WHITE if oncoming else RED)

    def photograph(self) -> tuple[np.ndarray, np.ndarray]:
        """Texture, light, average of the drawn pixels, soft lens, and the sensor's noise."""
        rng, label = self.rng, np.asarray(self.label)
        grain = 0.7 * rng.standard_normal(label.shape, np.float32) + 0.6 * self.noise(self.height // 12)
        image = np.asarray(self.image) * (1 + TEXTURE[label] * grain)[..., None] * self.tint * rng.uniform(0.85, 1.12)
        photo = Image.fromarray(image.clip(0, 255).astype(np.uint8)).reduce(OVERSAMPLE)
        image = np.asarray(photo.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))))
        image = (image + rng.uniform(1, 4) * rng.standard_normal(image.shape) + 0.5).clip(0, 255).astype(np.uint8)
        return image, label[OVERSAMPLE // 2 :: OVERSAMPLE, OVERSAMPLE // 2 :: OVERSAMPLE].copy()


def write_scenes(
    root: str | Path, train: int = 200, val: int = 40, size: tuple[int, int] = (180, 240), seed: int = 0
) -> Path:
    """Draw images/{train,val}/*.jpg and labels/{train,val}/*.png, CamVid's layout, into the new or empty folder `root`.

    The folder appears when it is complete; a second call returns at once. More scenes of a seed begin with the same.

    Raises:
        DatasetError: `root` holds scenes of other arguments, or files that are no scenes.
        ValueError: `train` or `val` is less than 1, or `size` (height, width) is too small (see `draw_scene`).
    """
    root = Path(root)
    if train < 1 or val < 1:
        raise ValueError(f"train={train}, val={val}: each split needs at least one scene")
    wanted = {"generator": VERSION, "seed": seed, "train": train, "val": val, "size": list(size)}
    if _is_written(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent, ignore_cleanup_errors=True) as name:
        part = Path(name)
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            for kind in ("images", "labels"):
                (part / kind / split).mkdir(parents=True)
            for index in range(count):
                image, label = draw_scene((seed, number, index), size)
                Image.fromarray(image).save(part / "images" / split / f"{index:05d}.jpg", quality=92)
                Image.fromarray(label).save(part / "labels" / split / f"{index:05d}.png")
        (part / MARKER).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        part.chmod(0o755)  # temporary folders are private
        try:
            os.replace(part, root)
        except OSError:
            if not _is_written(root, wanted):  # another process may have been faster, with the same scenes
                raise
    return root


def _is_written(root: Path, wanted: dict[str, Any]) -> bool:
    """Whether `root` already holds the wanted scenes; False if there is nothing, an error if something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(f"{root}: exists and is not a folder of scenes; choose an empty or new folder") from None
    if found != wanted:
        raise DatasetError(f"{root / MARKER}: holds other scenes, {found}, than {wanted}; choose another folder")
    return True
