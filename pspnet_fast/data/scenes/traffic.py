"""Cars, pedestrians and cyclists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pspnet_fast.data.scenes.camera import Camera
from pspnet_fast.data.scenes.canvas import Canvas, Color, Label, Point, Shape, shades
from pspnet_fast.data.scenes.street import Light


class _Model(NamedTuple):
    """A car body: the outline of its side as (part of the length, height in metres), from the near bumper over the roof
    to the far one; and the first points of the two lines of it that are windows."""

    length: float
    outline: tuple[Point, ...]
    windows: tuple[int, int]

    def turned(self) -> _Model:
        """The same body, front first."""
        last = len(self.outline) - 2
        outline = tuple((1 - part, height) for part, height in reversed(self.outline))
        return _Model(self.length, outline, (last - self.windows[1], last - self.windows[0]))


_BOOT: tuple[Point, ...] = ((0, 0.3), (0, 0.8), (0.02, 0.96), (0.15, 1.0), (0.26, 1.42))
_HATCH: tuple[Point, ...] = ((0, 0.3), (0, 0.8), (0.02, 0.98), (0.03, 1.02), (0.14, 1.46))
_DOORS: tuple[Point, ...] = ((0, 0.32), (0, 0.85), (0.01, 1.0), (0.01, 1.15), (0.03, 1.82))
_MODELS = (
    _Model(4.4, (*_BOOT, (0.56, 1.45), (0.73, 1.02), (0.97, 0.84), (1, 0.6), (1, 0.3)), (3, 5)),
    _Model(3.9, (*_HATCH, (0.5, 1.5), (0.72, 1.04), (0.96, 0.86), (1, 0.6), (1, 0.3)), (3, 5)),
    _Model(4.9, (*_DOORS, (0.7, 1.9), (0.86, 1.2), (0.98, 1.0), (1, 0.7), (1, 0.32)), (3, 5)),
)


@dataclass(frozen=True)
class _Car:
    """A body in its place on the street; `point` finds it on the canvas."""

    camera: Camera
    model: _Model
    x: float
    z: float

    def point(self, part: float, height: float, edge: float) -> Point:
        """`part` of the length from the near end, `height` in metres, `edge` -1 .. 1 across; the roof is narrower."""
        roof = max(height for _, height in self.model.outline)
        across = 0.9 * edge * (1 - 0.2 * max(0.0, height - 1.0) / (roof - 1.0))
        return self.camera.project(self.x + across, height, self.z + part * self.model.length)

    def quad(self, part: float, low: float, high: float, left: float, right: float) -> list[Point]:
        """An upright rectangle across the car."""
        corners = ((low, left), (low, right), (high, right), (high, left))
        return [self.point(part, height, edge) for height, edge in corners]


_PAINTS: tuple[Color, ...] = (
    (176, 28, 30),
    (32, 58, 120),
    (210, 212, 214),
    (148, 152, 156),
    (34, 36, 40),
    (84, 90, 96),
    (58, 96, 70),
    (196, 172, 130),
    (222, 186, 44),
    (90, 130, 168),
)
_GLASS: Color = (52, 62, 74)
_RUBBER: Color = (26, 26, 28)
_SKIN: tuple[Color, ...] = ((224, 178, 148), (196, 144, 112), (140, 96, 70), (92, 62, 46))


def draw_car(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, x: float, z: float, oncoming: bool
) -> None:
    """A car along the street with its near end at distance `z`, seen from behind, or from the front if oncoming."""
    model = _MODELS[rng.choice(len(_MODELS), p=[0.45, 0.35, 0.2])]
    car = _Car(camera, model.turned() if oncoming else model, x, z)
    paint = shades(_PAINTS[rng.integers(len(_PAINTS))], rng.uniform(0.8, 1.1))

    under = [(-1, -0.15), (1, -0.15), (1, model.length), (-1, model.length)]
    canvas.shade([camera.project(x + dx, 0, z + dz) for dx, dz in under], 0.65, blur=max(1.0, 0.08 * camera.focal / z))

    side = -1 if x > 0 else 1  # the flank that faces the camera
    lit = 0.72 if light.sun and light.sun != side else 0.86
    shapes = _flank(car, side, shades(paint, lit)) + _near_end(car, paint, rng.uniform(0.7, 1.5), oncoming)
    canvas.paint(shapes, Label.CAR, depth=z, grain=0.02, stain=0.05)


def _flank(car: _Car, side: int, paint: Color) -> list[Shape]:
    """Sill, body, side windows and wheels."""
    outline, (near, far) = car.model.outline, car.model.windows
    (near_low, near_high), (far_high, far_low) = outline[near : near + 2], outline[far : far + 2]
    low, high = max(near_low[1], far_low[1]) + 0.02, min(near_high[1], far_high[1]) - 0.08
    start, end, pillar = near_high[0], far_high[0], (near_high[0] + far_high[0]) / 2

    sill = [(0.02, 0.12), (0.98, 0.12), (0.98, 0.4), (0.02, 0.4)]
    window = [(near_low[0] + 0.06, low), (start + 0.03, high), (end - 0.03, high), (far_low[0] - 0.05, low)]
    return [
        Shape("polygon", [car.point(*at, side) for at in sill], _RUBBER),
        Shape("polygon", [car.point(*at, side) for at in outline], paint),
        Shape("polygon", [car.point(*at, side) for at in window], _GLASS),
        Shape("line", [car.point(pillar, low, side), car.point(pillar, high, side)], _RUBBER, 2),
        *_wheel(car.camera, car.x + 0.88 * side, car.z + 0.18 * car.model.length),
        *_wheel(car.camera, car.x + 0.88 * side, car.z + 0.81 * car.model.length),
    ]


def _wheel(camera: Camera, x: float, z: float) -> list[Shape]:
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False).tolist()

    def circle(radius: float) -> list[Point]:
        return [camera.project(x, 0.32 + radius * math.sin(a), z + radius * math.cos(a)) for a in angles]

    return [Shape("polygon", circle(0.33), _RUBBER), Shape("polygon", circle(0.19), (130, 132, 134))]


def _near_end(car: _Car, paint: Color, reflection: float, oncoming: bool) -> list[Shape]:
    """Tyres, bumper, boot or bonnet, window, lights and plate: the strips of the body that face the camera."""
    ends = ((-0.95, -0.68), (0.68, 0.95))
    shapes = [Shape("polygon", car.quad(0.02, 0.02, 0.4, *edges), _RUBBER) for edges in ends]
    shapes.append(Shape("polygon", car.quad(0, 0.2, 0.4, -0.9, 0.9), (30, 30, 32)))

    window = car.model.windows[0]
    strips = zip(car.model.outline[: window + 1], car.model.outline[1 : window + 2], strict=True)
    for index, (low, high) in enumerate(strips):
        strip = [car.point(*low, -1), car.point(*low, 1), car.point(*high, 1), car.point(*high, -1)]
        shapes.append(Shape("polygon", strip, shades(paint, 1.12 if index == 2 else 1.0)))
    low, high = car.model.outline[window : window + 2]
    pane = [car.point(*low, -0.86), car.point(*low, 0.86), car.point(*high, 0.84), car.point(*high, -0.84)]
    shapes.append(Shape("polygon", pane, shades(_GLASS, reflection)))

    lamp: Color = (246, 240, 214) if oncoming else (190, 26, 24)
    shapes += [Shape("polygon", car.quad(0, 0.6, 0.78, *edges), lamp) for edges in ends]
    shapes.append(Shape("polygon", car.quad(0, 0.44, 0.56, -0.28, 0.28), (232, 226, 190)))
    return shapes


def draw_pedestrian(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, x: float, z: float) -> None:
    """A person who walks or stands: legs in stride, coat or skirt, arms, head with hair, sometimes a bag."""
    tall = rng.uniform(1.55, 1.9) if rng.random() < 0.88 else rng.uniform(1.1, 1.35)
    px = camera.focal * tall / z
    foot_x, foot_y = camera.project(x, 0, z)
    top, legs = _cloth(rng), shades(_cloth(rng), 0.6)
    skin = _SKIN[rng.integers(len(_SKIN))]
    stride, sway = rng.uniform(0.01, 0.13), rng.choice([-1, 1])

    def at(dx: float, y: float) -> Point:
        return foot_x + sway * dx * px, foot_y - y * px

    _cast_shadow(canvas, camera, light, x, z, tall, 0.35)
    shapes = []
    for step, lit in ((-stride, 0.85), (stride, 1.0)):
        shapes.append(
            Shape("line", [at(0.0, 0.48), at(0.6 * step + 0.02, 0.25), at(step, 0.03)], shades(legs, lit), 0.085 * px)
        )
        shapes.append(Shape("line", [at(step - 0.01, 0.015), at(step + 0.05, 0.015)], (30, 26, 24), 0.035 * px))
    hem = rng.choice([0.46, 0.40, 0.28])
    shapes.append(
        Shape(
            "line",
            [at(-0.10, 0.78), at(-0.15 - 0.4 * stride, 0.6), at(-0.10 - stride, 0.45)],
            shades(top, 0.72),
            0.06 * px,
        )
    )
    shapes.append(
        Shape(
            "polygon",
            [at(-0.10, hem), at(0.10, hem), at(0.125, 0.8), at(0.06, 0.84), at(-0.06, 0.84), at(-0.125, 0.8)],
            top,
        )
    )
    shapes.append(
        Shape(
            "line",
            [at(0.11, 0.78), at(0.14 + 0.3 * stride, 0.6), at(0.12 + stride, 0.46)],
            shades(top, 0.88),
            0.06 * px,
        )
    )
    shapes.append(Shape("line", [at(0, 0.83), at(0, 0.88)], shades(skin, 0.85), 0.06 * px))
    hair: Color = tuple(rng.choice([[40, 30, 26], [86, 60, 38], [150, 120, 76], [120, 118, 116]]).tolist())
    shapes.append(Shape("ellipse", [at(-0.06, 1.005), at(0.055, 0.87)], hair))
    shapes.append(Shape("ellipse", [at(-0.035, 0.965), at(0.055, 0.86)], skin))
    if rng.random() < 0.4:
        shapes.append(
            Shape("polygon", [at(0.10, 0.36), at(0.24, 0.36), at(0.22, 0.5), at(0.12, 0.5)], shades(_cloth(rng), 0.7))
        )

    canvas.paint(shapes, Label.PEDESTRIAN, depth=z, grain=0.06, stain=0.05)


def draw_cyclist(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, x: float, z: float) -> None:
    """A cyclist, turned by some angle out of the direction of the street: wheels, frame, rider leaning forward."""
    px = camera.focal / z
    foot_x, foot_y = camera.project(x, 0, z)
    turn = rng.choice([-1, 1]) * rng.uniform(0.35, 1.0)
    frame, top, legs = _cloth(rng), _cloth(rng), shades(_cloth(rng), 0.5)
    skin = _SKIN[rng.integers(len(_SKIN))]

    def at(along: float, y: float) -> Point:
        return foot_x + turn * along * px, foot_y - y * px

    def wheel(along: float) -> Shape:
        (cx, cy), wide = at(along, 0.34), abs(turn) * 0.34 * px
        return Shape("ring", [(cx - wide, cy - 0.34 * px), (cx + wide, cy + 0.34 * px)], _RUBBER, max(1.5, 0.05 * px))

    _cast_shadow(canvas, camera, light, x, z, 1.7, 0.6)
    thin, pedal = max(1.5, 0.05 * px), rng.uniform(-0.14, 0.14)
    shapes = [
        wheel(-0.52),
        wheel(0.52),
        Shape("line", [at(-0.52, 0.34), at(-0.16, 0.78), at(0.38, 0.8), at(0.0, 0.3), at(-0.16, 0.78)], frame, thin),
        Shape("line", [at(-0.52, 0.34), at(0.0, 0.3)], frame, thin),
        Shape("line", [at(0.52, 0.34), at(0.36, 1.02), at(0.46, 1.04)], frame, thin),
        Shape(
            "line", [at(-0.18, 0.94), at(0.16, 0.64 - pedal / 2), at(0.0, 0.26 - pedal)], shades(legs, 0.75), 0.13 * px
        ),
        Shape("line", [at(-0.18, 0.94), at(0.18, 0.68 + pedal / 2), at(0.02, 0.26 + pedal)], legs, 0.14 * px),
        Shape("polygon", [at(-0.28, 0.9), at(-0.04, 0.88), at(0.26, 1.36), at(0.16, 1.5), at(-0.02, 1.44)], top),
        Shape("line", [at(0.16, 1.38), at(0.26, 1.14), at(0.42, 1.06)], shades(top, 0.82), 0.1 * px),
    ]
    head_x, head_y = at(0.24, 1.6)
    helmet = shades(_cloth(rng), 1.1)
    shapes.append(
        Shape("ellipse", [(head_x - 0.11 * px, head_y - 0.13 * px), (head_x + 0.11 * px, head_y + 0.14 * px)], skin)
    )
    shapes.append(
        Shape("ellipse", [(head_x - 0.14 * px, head_y - 0.17 * px), (head_x + 0.13 * px, head_y - 0.0 * px)], helmet)
    )

    canvas.paint(shapes, Label.BICYCLIST, depth=z, grain=0.05, stain=0.05)


def _cast_shadow(canvas: Canvas, camera: Camera, light: Light, x: float, z: float, tall: float, half: float) -> None:
    """On the ground, away from the sun; a soft spot under an overcast sky."""
    reach = -light.sun * tall * 1.1
    blur = max(1.0, 0.06 * camera.focal / z)
    points = [
        (x - half / 2, 0, z - 0.15),
        (x + half / 2, 0, z - 0.15),
        (x + reach + half / 2, 0, z + 0.35),
        (x + reach - half / 2, 0, z + 0.35),
    ]
    canvas.shade(camera.outline(points), 0.4 if light.sun else 0.3, blur)


def _cloth(rng: np.random.Generator) -> Color:
    """Mostly muted, sometimes bright."""
    grey, spread = rng.uniform(40, 190), rng.choice([18, 75])
    red, green, blue = np.clip(grey + rng.uniform(-spread, spread, 3), 16, 235).tolist()
    return red, green, blue
