"""What a scene stands on and in front of: sky, skyline, road and pavement; and the light on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pspnet_fast.data.scenes.camera import Camera
from pspnet_fast.data.scenes.canvas import Canvas, Color, Label, Shape, smooth_noise

MARKING_LENGTH = 3.0  # of a dash of the lane marking, in metres
KERB = 0.18  # width of the kerb stones


@dataclass(frozen=True)
class Light:
    """Time of day and weather.

    Args:
        sun: side that the sun is on, -1 left, 1 right, 0 for an overcast sky.
        zenith, horizon: colours of the sky.
        clouds: part of the sky that they cover, 0 .. 1.
        tint: colour of the light, about 1 a channel.
        haze_range: metres after which a colour is two thirds haze.
    """

    sun: int
    zenith: Color
    horizon: Color
    clouds: float
    tint: Color
    haze_range: float

    def on_side(self, side: int) -> float:
        """How bright a wall on a side of the street is: the sun shines on the far one."""
        return 0.88 if self.sun == 0 else (1.06 if self.sun != side else 0.62)


@dataclass(frozen=True)
class Street:
    """Cross-section of the street, in metres to the right of the camera, and how far it goes."""

    left: float  # edges of the road
    right: float
    left_wall: float  # where the buildings begin
    right_wall: float
    end: float

    def kerb(self, side: int) -> float:
        return self.right if side > 0 else self.left

    def wall(self, side: int) -> float:
        return self.right_wall if side > 0 else self.left_wall


def random_light(rng: np.random.Generator) -> Light:
    kind = rng.choice(["clear", "cloudy", "overcast", "evening"], p=[0.35, 0.3, 0.2, 0.15])
    sun = 0 if kind == "overcast" else int(rng.choice([-1, 1]))
    zenith, horizon, clouds, tint = {
        "clear": ((78.0, 130.0, 205.0), (188.0, 212.0, 234.0), 0.15, (1.20, 1.16, 1.08)),
        "cloudy": ((105.0, 148.0, 200.0), (206.0, 218.0, 228.0), 0.55, (1.12, 1.12, 1.10)),
        "overcast": ((178.0, 186.0, 194.0), (216.0, 220.0, 222.0), 0.9, (1.0, 1.03, 1.06)),
        "evening": ((96.0, 112.0, 168.0), (244.0, 196.0, 150.0), 0.4, (1.12, 0.98, 0.82)),
    }[str(kind)]
    gain = rng.uniform(0.85, 1.12)
    return Light(
        sun,
        _jitter(rng, zenith, 12),
        _jitter(rng, horizon, 8),
        clouds,
        (tint[0] * gain, tint[1] * gain, tint[2] * gain),
        rng.uniform(90, 240),
    )


def draw_sky(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """Gradient and clouds, down to the horizon."""
    height, width = int(camera.center[1]) + 1, canvas.width
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** 0.8
    sky = np.asarray(light.zenith, np.float32) * (1 - down) + np.asarray(light.horizon, np.float32) * down

    # Flattened towards the horizon, as a ceiling of clouds is.
    noise = smooth_noise(rng, (height, width), cells=2, octaves=5)
    noise = noise[(np.sqrt(np.linspace(0, 1, height)) * (height - 1)).astype(int)]
    cover = np.clip((noise - (0.7 - 1.4 * light.clouds)) * 1.2, 0, 0.9)[..., None]
    lit = np.asarray((250, 249, 246), np.float32) * (0.86 + 0.14 * np.clip(noise, 0, 1))[..., None]
    white = lit * 0.8 + np.asarray(light.horizon, np.float32) * 0.2

    everywhere = np.ones((height, width), bool)
    canvas.blend(
        slice(0, height),
        slice(0, width),
        sky * (1 - cover) + white * cover,
        everywhere,
        Label.SKY,
        grain=0.006,
        stain=0,
    )


def draw_skyline(canvas: Canvas, camera: Camera, rng: np.random.Generator, street: Street) -> None:
    """What closes the view at the end of the street: distant houses, or a row of trees."""
    px_per_m = camera.focal / street.end
    trees = rng.random() < 0.5
    label, color = (Label.TREE, (74.0, 98.0, 62.0)) if trees else (Label.BUILDING, (128.0, 118.0, 112.0))
    shapes, x = [], -20.0

    while x < canvas.width + 20:
        span = rng.uniform(3, 8) if trees else rng.uniform(8, 20)
        tall = rng.uniform(5, 9) if trees else rng.uniform(6, 16)
        width, top = span * px_per_m, camera.center[1] - (tall - camera.eye) * px_per_m
        shade = rng.uniform(0.8, 1.2)
        tone = (color[0] * shade, color[1] * shade, color[2] * shade)
        low = camera.center[1] + 1 + camera.eye * px_per_m
        if trees:
            shapes.append(Shape("ellipse", [(x - 0.3 * width, top), (x + 1.3 * width, low + 0.4 * (low - top))], tone))
        else:
            shapes.append(Shape("polygon", [(x, top), (x + width, top), (x + width, low), (x, low)], tone))
        x += width

    canvas.paint(shapes, label, depth=street.end, grain=0.08, stain=0.15)


def draw_ground(canvas: Canvas, camera: Camera, rng: np.random.Generator, street: Street, light: Light) -> None:
    """Road with markings, kerb and pavement, as textures of the ground plane."""
    plane = camera.ground()
    x, z = plane.u, plane.v
    noise = rng.uniform(-1, 1, (256, 256)).astype(np.float32)
    speckle, patches = _lookup(noise, x, z, 30.0), _lookup(_soften(noise), x, z, 2.2)
    on_road = (x > street.left) & (x < street.right)

    asphalt = np.asarray(_jitter(rng, (1.0, 1.0, 1.04), 0.03), np.float32) * rng.uniform(72, 128)
    road = asphalt * (1 + 0.10 * speckle + 0.16 * patches + _wear(rng, street, x))[..., None]
    road = _paint_markings(rng, street, road, x, z, patches)

    stone = np.asarray(_PAVEMENTS[rng.integers(len(_PAVEMENTS))], np.float32) * rng.uniform(0.8, 1.15)
    tile = float(rng.choice([0.5, 0.8, 1.2]))
    row = np.floor(z / tile)
    column = np.floor((x + 0.5 * tile * (row % 2)) / tile)
    seam = (np.mod(z / tile, 1) < 0.07) | (np.mod((x + 0.5 * tile * (row % 2)) / tile, 1) < 0.07)
    each = noise[row.astype(int) & 255, column.astype(int) & 255]
    pavement = stone * (1 + 0.07 * each + 0.06 * speckle + 0.10 * patches - np.float32(0.16) * seam)[..., None]

    from_kerb = np.where(x < 0, street.left - x, x - street.right)
    kerb = (from_kerb > 0) & (from_kerb < KERB)
    pavement = np.where(kerb[..., None], np.float32(150) * (1 + 0.06 * speckle)[..., None], pavement)
    gutter = (from_kerb < 0) & (from_kerb > -0.25)
    road = road * (1 - np.float32(0.22) * gutter)[..., None]

    color = np.where(on_road[..., None], road, pavement)
    if light.sun:
        color = color * _house_shadow(rng, street, light, x, z)[..., None]
    labels = np.where(on_road, Label.ROAD, Label.PAVEMENT)
    canvas.blend(plane.rows, plane.columns, color, plane.inside, labels, depth=plane.depth, grain=0.03, stain=0.05)


_PAVEMENTS = ((158, 150, 140), (140, 140, 142), (172, 160, 142), (150, 122, 108), (122, 124, 128))


def _wear(rng: np.random.Generator, street: Street, x: np.ndarray) -> np.ndarray:
    """Dark tracks where the wheels run, two a lane."""
    wear = np.zeros_like(x)
    middle = (street.left + street.right) / 2
    for lane in ((street.left + middle) / 2, (street.right + middle) / 2):
        for wheel in (-0.75, 0.75):
            wear -= rng.uniform(0.04, 0.14) * np.exp(-(((x - lane - wheel) / 0.3) ** 2))
    return wear


def _paint_markings(
    rng: np.random.Generator, street: Street, road: np.ndarray, x: np.ndarray, z: np.ndarray, worn: np.ndarray
) -> np.ndarray:
    """Middle line, edge lines and sometimes a zebra crossing, in worn white."""
    middle, phase = (street.left + street.right) / 2, rng.uniform(0, 2 * MARKING_LENGTH)
    dash = np.mod(z + phase, 2 * MARKING_LENGTH) < MARKING_LENGTH
    style = rng.choice(["dashed", "solid", "double", "none"], p=[0.55, 0.2, 0.1, 0.15])
    paint = {
        "dashed": (np.abs(x - middle) < 0.08) & dash,
        "solid": np.abs(x - middle) < 0.08,
        "double": np.abs(np.abs(x - middle) - 0.14) < 0.06,
        "none": np.zeros(x.shape, bool),
    }[str(style)]
    if rng.random() < 0.5:
        paint |= (np.abs(x - street.left - 0.45) < 0.06) | (np.abs(street.right - 0.45 - x) < 0.06)
    if rng.random() < 0.3:
        start = rng.uniform(6, 22)
        crossing = (z > start) & (z < start + 3.2) & (x > street.left + 0.3) & (x < street.right - 0.3)
        paint = np.where(crossing, np.mod(x - street.left, 1.0) < 0.5, paint)

    white = np.asarray(rng.choice([[226, 226, 220], [226, 204, 120]], p=[0.85, 0.15]), np.float32)
    strength = (paint * np.clip(0.85 + 0.5 * worn, 0.3, 0.95))[..., None]
    return road * (1 - strength) + white * strength


def _house_shadow(rng: np.random.Generator, street: Street, light: Light, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Shadow of the houses on the sunny side, stepped as their roofs are."""
    reach = rng.uniform(0.0, 0.75) * (street.right_wall - street.left_wall)
    steps = rng.uniform(-1.5, 1.5, 64).astype(np.float32)[(z / 7).astype(int) & 63]
    from_wall = (street.right_wall - x) if light.sun > 0 else (x - street.left_wall)
    edge = np.clip((from_wall - reach - steps) / 0.25, 0, 1)
    return 0.58 + 0.42 * edge


def _lookup(noise: np.ndarray, x: np.ndarray, z: np.ndarray, per_metre: float) -> np.ndarray:
    rows, columns = noise.shape
    return noise[(z * per_metre).astype(int) % rows, np.floor(x * per_metre).astype(int) % columns]


def _soften(noise: np.ndarray) -> np.ndarray:
    """Averaged over 4x4 neighbours, periodic as the noise itself; back to about its old spread."""
    return np.add.reduce([np.roll(noise, (i, j), (0, 1)) for i in range(4) for j in range(4)]) / 6


def _jitter(rng: np.random.Generator, color: Color, amount: float) -> Color:
    red, green, blue = (
        float(value + change) for value, change in zip(color, rng.uniform(-amount, amount, 3), strict=True)
    )
    return red, green, blue
