"""Trees, lamp posts, traffic signs and lights, bins: what stands on the pavement."""

from __future__ import annotations

import numpy as np

from pspnet_fast.data.scenes.camera import Camera
from pspnet_fast.data.scenes.canvas import Canvas, Color, Label, Point, Shape, shades
from pspnet_fast.data.scenes.street import Light

_LEAVES: tuple[Color, ...] = ((70, 108, 48), (92, 122, 58), (56, 88, 52), (118, 128, 56), (150, 118, 48), (84, 112, 78))


def draw_tree(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, x: float, z: float) -> None:
    """A trunk with branches and a crown of leaf clumps, lit from the side of the sun and from above."""
    height, radius = rng.uniform(4.5, 9.5), rng.uniform(1.3, 2.6)
    px = camera.focal / z
    foot_x, foot_y = camera.project(x, 0, z)
    crown_y = foot_y - (height - radius) * px
    bark: Color = shades((88, 70, 54), rng.uniform(0.7, 1.2))
    thick = rng.uniform(0.14, 0.26) * px

    trunk = [
        Shape(
            "polygon",
            _taper((foot_x, foot_y), (foot_x + rng.uniform(-0.3, 0.3) * px, crown_y), thick, 0.5 * thick),
            bark,
        )
    ]
    for _ in range(4):
        end = (foot_x + rng.uniform(-0.9, 0.9) * radius * px, crown_y + rng.uniform(-0.5, 0.5) * radius * px)
        trunk.append(Shape("line", [(foot_x, crown_y + 0.9 * radius * px), end], shades(bark, 0.85), 0.35 * thick))
    canvas.paint(trunk, Label.TREE, depth=z, grain=0.12, stain=0.1)

    # Clumps from the back to the front, small ones last; open in between, so that the crown has a ragged edge.
    leaf = _LEAVES[rng.integers(len(_LEAVES))]
    shapes = []
    clumps = int(np.clip(radius * px, 16, 90))  # no more of them than one sees
    for number in range(clumps):
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        dx, dy = np.cos(angle) * far * 0.95, np.sin(angle) * far * rng.uniform(0.75, 1.1)
        size = radius * px * (rng.uniform(0.22, 0.42) if number < 0.45 * clumps else rng.uniform(0.07, 0.2))
        lit = 0.92 - 0.34 * dy + 0.22 * light.sun * dx + rng.uniform(-0.18, 0.18)
        cx, cy = foot_x + dx * radius * px, crown_y + dy * radius * px
        shapes.append(Shape("ellipse", [(cx - size, cy - 0.8 * size), (cx + size, cy + 0.8 * size)], shades(leaf, lit)))
    canvas.paint(shapes, Label.TREE, depth=z, grain=0.2, stain=0.16)


def draw_lamp(canvas: Canvas, camera: Camera, rng: np.random.Generator, side: int, x: float, z: float) -> None:
    """A lamp post with its arm over the road."""
    px = camera.focal / z
    height, arm = rng.uniform(5.0, 8.0), rng.uniform(0.8, 1.8)
    foot, top = camera.project(x, 0, z), camera.project(x, height, z)
    color: Color = shades((112, 116, 116), rng.uniform(0.45, 1.3))
    tip = (top[0] - side * arm * px, top[1] - 0.25 * px)

    canvas.paint(
        [
            Shape("polygon", _taper(foot, top, 0.11 * px, 0.07 * px), color),
            Shape("polygon", _taper(foot, (foot[0], foot[1] - 0.9 * px), 0.17 * px, 0.15 * px), shades(color, 0.85)),
            Shape("line", [top, (top[0] - 0.4 * side * arm * px, top[1] - 0.2 * px), tip], color, 0.09 * px),
            Shape(
                "ellipse",
                [(tip[0] - 0.35 * px, tip[1] - 0.06 * px), (tip[0] + 0.35 * px, tip[1] + 0.14 * px)],
                shades(color, 1.25),
            ),
        ],
        Label.POLE,
        depth=z,
    )


def draw_sign(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic sign, or a traffic light, on its post."""
    px = camera.focal / z
    height = rng.uniform(2.3, 3.1)
    foot, top = camera.project(x, 0, z), camera.project(x, height, z)
    canvas.paint(
        [Shape("polygon", _taper(foot, top, 0.06 * px, 0.06 * px), shades((150, 152, 152), rng.uniform(0.6, 1.1)))],
        Label.POLE,
        depth=z,
    )

    size = rng.uniform(0.36, 0.52) * px
    plate = _traffic_light if rng.random() < 0.25 else _PLATES[rng.integers(len(_PLATES))]
    canvas.paint(plate(top, size), Label.SIGN, depth=z, grain=0.03, stain=0.03)
    if rng.random() < 0.3:
        below = (top[0], top[1] + 1.75 * size)
        canvas.paint(
            [_box(below, size, 0.4 * size, (228, 228, 222)), _box(below, 0.7 * size, 0.1 * size, (40, 40, 40))],
            Label.SIGN,
            depth=z,
            grain=0.03,
        )


def draw_bin(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A litter bin or a bollard: something that no class names."""
    px = camera.focal / z
    foot = camera.project(x, 0, z)
    height, half = rng.uniform(0.7, 1.2) * px, rng.uniform(0.14, 0.32) * px
    color: Color = tuple(rng.choice([[46, 84, 58], [58, 60, 64], [130, 52, 40], [70, 88, 120]]).tolist())

    middle = (foot[0], foot[1] - height / 2)
    canvas.paint(
        [
            _box(middle, half, height / 2, color),
            _box((foot[0], foot[1] - height), 1.15 * half, 0.07 * height, shades(color, 0.6)),
            _box(middle, 0.6 * half, 0.12 * height, shades(color, 1.5)),
        ],
        Label.UNLABELLED,
        depth=z,
    )


def _prohibition(center: Point, r: float) -> list[Shape]:
    return [
        _disc(center, r, (196, 30, 36)),
        _disc(center, 0.74 * r, (236, 236, 232)),
        _box((center[0] - 0.24 * r, center[1]), 0.14 * r, 0.36 * r, (30, 30, 30)),
        _box((center[0] + 0.26 * r, center[1]), 0.18 * r, 0.36 * r, (30, 30, 30)),
    ]


def _mandatory(center: Point, r: float) -> list[Shape]:
    x, y = center
    return [
        _disc(center, r, (228, 230, 232)),
        _disc(center, 0.93 * r, (30, 84, 176)),
        Shape("line", [(x, y + 0.6 * r), (x, y - 0.3 * r)], (236, 236, 236), 0.26 * r),
        Shape(
            "polygon", [(x - 0.42 * r, y - 0.1 * r), (x + 0.42 * r, y - 0.1 * r), (x, y - 0.66 * r)], (236, 236, 236)
        ),
    ]


def _warning(center: Point, r: float) -> list[Shape]:
    x, y = center

    def triangle(size: float, color: Color) -> Shape:
        return Shape(
            "polygon", [(x, y - size), (x + 0.95 * size, y + 0.7 * size), (x - 0.95 * size, y + 0.7 * size)], color
        )

    return [
        triangle(1.15 * r, (200, 34, 38)),
        triangle(0.72 * r, (238, 236, 228)),
        _box((x, y + 0.05 * r), 0.08 * r, 0.3 * r, (24, 24, 24)),
    ]


def _stop(center: Point, r: float) -> list[Shape]:
    x, y = center
    corners = np.pi / 8 + np.arange(8) * np.pi / 4

    def octagon(size: float, color: Color) -> Shape:
        return Shape("polygon", [(x + size * float(np.cos(a)), y + size * float(np.sin(a))) for a in corners], color)

    return [
        octagon(1.08 * r, (236, 236, 236)),
        octagon(0.98 * r, (186, 24, 34)),
        _box(center, 0.68 * r, 0.2 * r, (236, 236, 236)),
    ]


def _crossing(center: Point, r: float) -> list[Shape]:
    x, y = center
    return [
        _box(center, r, r, (30, 84, 176)),
        Shape(
            "polygon", [(x, y - 0.75 * r), (x + 0.75 * r, y + 0.7 * r), (x - 0.75 * r, y + 0.7 * r)], (238, 238, 238)
        ),
        _disc((x, y - 0.28 * r), 0.12 * r, (20, 20, 20)),
        Shape("line", [(x, y - 0.1 * r), (x - 0.16 * r, y + 0.55 * r)], (20, 20, 20), 0.16 * r),
        Shape("line", [(x, y + 0.1 * r), (x + 0.22 * r, y + 0.55 * r)], (20, 20, 20), 0.12 * r),
    ]


def _priority(center: Point, r: float) -> list[Shape]:
    x, y = center

    def diamond(size: float, color: Color) -> Shape:
        return Shape("polygon", [(x, y - size), (x + size, y), (x, y + size), (x - size, y)], color)

    return [diamond(1.1 * r, (240, 240, 236)), diamond(0.85 * r, (240, 186, 30))]


def _traffic_light(center: Point, r: float) -> list[Shape]:
    x, y = center
    lamps = ((200, 40, 30), (70, 62, 30), (30, 70, 44))
    return [
        _box(center, 0.55 * r, 1.35 * r, (34, 36, 36)),
        *(_disc((x, y + offset * r), 0.34 * r, lamp) for offset, lamp in zip((-0.85, 0, 0.85), lamps, strict=True)),
    ]


_PLATES = (_prohibition, _mandatory, _warning, _stop, _crossing, _priority)


def _disc(center: Point, r: float, color: Color) -> Shape:
    return Shape("ellipse", [(center[0] - r, center[1] - r), (center[0] + r, center[1] + r)], color)


def _box(center: Point, half_width: float, half_height: float, color: Color) -> Shape:
    (x, y), w, h = center, half_width, half_height
    return Shape("polygon", [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)], color)


def _taper(foot: Point, top: Point, foot_half: float, top_half: float) -> list[Point]:
    return [
        (foot[0] - foot_half, foot[1]),
        (top[0] - top_half, top[1]),
        (top[0] + top_half, top[1]),
        (foot[0] + foot_half, foot[1]),
    ]
