"""A scene: a street drawn up at random, drawn from the back to the front, and photographed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from pspnet_fast.data.scenes.buildings import draw_fence, draw_house
from pspnet_fast.data.scenes.camera import Camera
from pspnet_fast.data.scenes.canvas import OVERSAMPLE, Canvas
from pspnet_fast.data.scenes.furniture import draw_bin, draw_lamp, draw_sign, draw_tree
from pspnet_fast.data.scenes.street import Light, Street, draw_ground, draw_sky, draw_skyline, random_light
from pspnet_fast.data.scenes.traffic import draw_car, draw_cyclist, draw_pedestrian

VERSION = 1
"""Changes whenever a seed gives another picture."""

SMALLEST = 48

Item = tuple[float, Callable[[], None]]
"""Something to draw, with the distance that puts it in its turn."""


def draw_scene(seed: int | tuple[int, ...], size: tuple[int, int] = (180, 240)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a street scene: the same picture, bit for bit, for the same seed and size.

    Args:
        seed: a non-negative number, or several.
        size: (height, width), at least 48 each.

    Returns:
        image uint8 [h, w, 3], RGB; label uint8 [h, w], CamVid's classes 0 .. 10 and 11 for unlabelled.

    Raises:
        ValueError: `size` is too small.
    """
    if min(size) < SMALLEST:
        raise ValueError(f"size={size}: a street needs at least {SMALLEST} pixels each way")
    rng = np.random.default_rng(seed)
    canvas, light = Canvas(rng, size), random_light(rng)
    canvas.haze, canvas.haze_range = light.horizon, light.haze_range

    camera = Camera(
        canvas.width,
        canvas.height,
        focal=rng.uniform(0.72, 0.95) * max(canvas.width, 1.2 * canvas.height),
        center=(canvas.width * rng.uniform(0.38, 0.62), canvas.height * rng.uniform(0.4, 0.52)),
        eye=rng.uniform(1.35, 1.75),
    )
    street = _random_street(rng)

    draw_sky(canvas, camera, rng, light)
    draw_skyline(canvas, camera, rng, street)
    draw_ground(canvas, camera, rng, street, light)

    items: list[Item] = []
    for side in (-1, 1):
        items += _houses(canvas, camera, rng, street, light, side)
        items += _pavement(canvas, camera, rng, street, light, side)
    items += _traffic(canvas, camera, rng, street, light)
    for _, draw in sorted(items, key=lambda item: -item[0]):
        draw()

    return _photograph(canvas, rng, light)


def _random_street(rng: np.random.Generator) -> Street:
    width, at = rng.uniform(6.4, 11.0), rng.uniform(0.3, 0.7)
    left, right = -width * at, width * (1 - at)
    return Street(left, right, left - rng.uniform(2.2, 4.5), right + rng.uniform(2.2, 4.5), rng.uniform(60, 130))


def _houses(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, street: Street, light: Light, side: int
) -> list[Item]:
    """House after house; in the gaps trees behind a fence."""
    items: list[Item] = []
    z = rng.uniform(-4, 2)

    while z < street.end:
        depth = rng.uniform(7, 16)
        ends = (z, min(z + depth, street.end))
        if rng.random() < 0.78:
            # A house hides what is behind its far end and is hidden by what stands before it.
            items.append((ends[1], partial(draw_house, canvas, camera, rng, street, light, side, *ends)))
        else:
            wall = street.wall(side)
            items.append((ends[1], partial(draw_fence, canvas, camera, rng, light, side, wall, *ends)))
            for at in np.arange(max(ends[0], 4.0), ends[1], 4.5).tolist():
                tree_x, tree_z = wall + side * rng.uniform(2.0, 5.0), at + rng.uniform(0, 2)
                behind = ends[1] + 0.1 + tree_z / 1e3  # the fence, so drawn before it
                items.append((behind, partial(draw_tree, canvas, camera, rng, light, tree_x, tree_z)))
        z += depth

    return items


def _pavement(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, street: Street, light: Light, side: int
) -> list[Item]:
    """Trees, lamps, signs, bins and railings along the kerb, people between them and the houses."""
    items: list[Item] = []
    kerb, wall = street.kerb(side), street.wall(side)
    edge = kerb + side * 0.5

    def place(z: float, draw: Callable[..., None], *args: object) -> None:
        items.append((z, partial(draw, canvas, camera, rng, *args)))

    if rng.random() < 0.6:
        for z in np.arange(rng.uniform(5, 12), street.end * 0.8, rng.uniform(7, 14)).tolist():
            place(z, draw_tree, light, edge + side * 0.3, z)
    for z in np.arange(rng.uniform(5, 16), street.end * 0.7, rng.uniform(14, 24)).tolist():
        place(z, draw_lamp, side, edge, z)
    for z in rng.uniform(6, 34, rng.integers(1, 4)).tolist():
        place(z, draw_sign, edge, z)
    for z in rng.uniform(5, 30, rng.integers(0, 3)).tolist():
        place(z, draw_bin, kerb + side * rng.uniform(0.5, 0.9), z)
    if rng.random() < 0.35:
        z0 = rng.uniform(3, 14)
        z1 = z0 + rng.uniform(6, 16)
        items.append((z1, partial(draw_fence, canvas, camera, rng, light, side, kerb + side * 0.35, z0, z1)))
    for z in rng.uniform(4.5, 28, rng.integers(2, 8)).tolist():
        place(z, draw_pedestrian, light, edge + (wall - side * 0.4 - edge) * rng.random(), z)

    return items


def _traffic(canvas: Canvas, camera: Camera, rng: np.random.Generator, street: Street, light: Light) -> list[Item]:
    """Parked cars on either side, cars and cyclists on their way, now and then somebody who crosses."""
    items: list[Item] = []
    middle = (street.left + street.right) / 2

    def place(z: float, draw: Callable[..., None], *args: object) -> None:
        items.append((z, partial(draw, canvas, camera, rng, light, *args)))

    for side in (-1, 1):
        if rng.random() < 0.6:
            z = rng.uniform(4, 14)
            while z < 60:
                if rng.random() < 0.7:
                    place(z, draw_car, street.kerb(side) - side * 1.1, z, bool(rng.random() < 0.3))
                z += rng.uniform(5.6, 7.5)

    for lane, oncoming in (((street.right + middle) / 2, False), ((street.left + middle) / 2, True)):
        z = rng.uniform(9, 30)
        for _ in range(rng.integers(0, 3)):
            place(z, draw_car, lane, z, oncoming)
            z += rng.uniform(9, 25)
    for _ in range(rng.integers(0, 4)):
        z, side = rng.uniform(6, 26), int(rng.choice([-1, 1]))
        place(z, draw_cyclist, street.kerb(side) - side * rng.uniform(1.9, 2.6), z)
    if rng.random() < 0.25:
        z = rng.uniform(7, 24)
        place(z, draw_pedestrian, rng.uniform(street.left, street.right), z)

    return items


def _photograph(canvas: Canvas, rng: np.random.Generator, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Average the canvas pixels, expose, soften, add the sensor's noise."""
    height, width = canvas.height // OVERSAMPLE, canvas.width // OVERSAMPLE
    blocks = canvas.image.reshape(height, OVERSAMPLE, width, OVERSAMPLE, 3)
    image = np.add.reduce([blocks[:, i, :, j] for i in range(OVERSAMPLE) for j in range(OVERSAMPLE)])
    image *= np.asarray(light.tint, np.float32) / OVERSAMPLE**2

    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    image *= (1 - rng.uniform(0.02, 0.12) * (x**2 + y**2))[..., None]
    photo = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.6)))

    noise = rng.uniform(1.0, 4.0) * rng.standard_normal(image.shape, np.float32)
    image = np.clip(np.asarray(photo, np.float32) + noise + 0.5, 0, 255).astype(np.uint8)
    return image, canvas.label[OVERSAMPLE // 2 :: OVERSAMPLE, OVERSAMPLE // 2 :: OVERSAMPLE].copy()
