"""Houses along the street and fences: textures of upright planes."""

from __future__ import annotations

import numpy as np

from pspnet_fast.data.scenes.camera import Camera, Plane
from pspnet_fast.data.scenes.canvas import Canvas, Color, Label
from pspnet_fast.data.scenes.street import Light, Street

FLOOR = 3.1  # height of a storey in metres

_WALLS: tuple[Color, ...] = (
    (150, 84, 66),
    (176, 108, 82),
    (206, 190, 160),
    (188, 184, 176),
    (222, 212, 190),
    (146, 148, 152),
    (170, 152, 128),
    (118, 92, 80),
    (196, 164, 120),
    (164, 178, 182),
)


def draw_house(
    canvas: Canvas,
    camera: Camera,
    rng: np.random.Generator,
    street: Street,
    light: Light,
    side: int,
    z0: float,
    z1: float,
) -> None:
    """A house on a side of the street, from z0 to z1: its front, and the gable that faces the camera."""
    storeys = int(rng.integers(2, 7))
    height = FLOOR * storeys + rng.uniform(0.3, 0.9)
    color = np.asarray(_WALLS[rng.integers(len(_WALLS))], np.float32) * rng.uniform(0.8, 1.12)
    x = street.wall(side) + side * float(rng.choice([0.0, 0.0, 0.4, 0.8]))

    gable = camera.facing_wall(z0, x, x + side * 14, height)
    if gable is not None:
        wall = _masonry(rng, color * (0.80 if light.sun else 0.86), gable.u, gable.v)
        canvas.blend(
            gable.rows, gable.columns, wall, gable.inside, Label.BUILDING, depth=gable.depth, grain=0.05, stain=0.12
        )

    front = camera.side_wall(x, z0, z1, height)
    if front is not None:
        wall = _front(rng, color, front, z0, z1, storeys, height)
        canvas.blend(
            front.rows,
            front.columns,
            wall * light.on_side(side),
            front.inside,
            Label.BUILDING,
            depth=front.depth,
            grain=0.05,
            stain=0.12,
        )


def _front(
    rng: np.random.Generator, color: np.ndarray, plane: Plane, z0: float, z1: float, storeys: int, height: float
) -> np.ndarray:
    """Masonry, windows with frames and sills, a ground floor of doors or shop windows, a cornice."""
    along, up = plane.u - z0, plane.v
    wall = _masonry(rng, color, along, up)

    bays = max(2, round((z1 - z0) / rng.uniform(2.0, 3.4)))
    bay = (z1 - z0) / bays
    column, row = np.clip((along / bay).astype(int), 0, bays - 1), np.clip((up / FLOOR).astype(int), 0, storeys - 1)
    in_bay, in_floor = along / bay - column.astype(np.float32), up / FLOOR - row.astype(np.float32)

    half, low, high = rng.uniform(0.18, 0.36), rng.uniform(0.2, 0.34), rng.uniform(0.76, 0.88)
    shop = rng.random() < 0.45
    ground = row == 0
    half_here = np.where(ground & shop, 0.44, half)
    low_here = np.where(ground, np.where(shop | (column % 3 == 1), 0.03, low), low)
    window = (np.abs(in_bay - 0.5) < half_here) & (in_floor > low_here) & (in_floor < high)

    # Panes: dark rooms, curtains, and the sky in some of them, brighter towards the top.
    panes = rng.choice([0.55, 0.8, 1.0, 2.1], (storeys, bays), p=[0.35, 0.3, 0.2, 0.15]).astype(np.float32)[row, column]
    glass = np.asarray((66, 78, 92), np.float32) * (panes * (0.8 + 0.5 * in_floor))[..., None]
    door = ground & (column % 3 == 1) & (not shop)
    glass = np.where(door[..., None], np.asarray(rng.uniform(30, 130, 3), np.float32), glass)

    frame = window & (
        (np.abs(np.abs(in_bay - 0.5) - half_here) < 0.035)
        | (np.abs(in_bay - 0.5) < 0.018)
        | (high - in_floor < 0.04)
        | (np.abs(in_floor - (low_here + high) / 2) < 0.015)
    )
    paint = np.asarray(rng.choice([[232, 230, 224], [92, 78, 66], [170, 172, 172]], p=[0.6, 0.2, 0.2]), np.float32)
    sill = (np.abs(in_bay - 0.5) < half_here + 0.05) & (np.abs(in_floor - low_here) < 0.03)
    cornice = (up > height - 0.5) | (np.abs(up - FLOOR) < 0.14)

    wall = np.where((cornice | sill)[..., None], color * 0.5 + 105, wall)
    wall = np.where(window[..., None], glass, wall)
    wall = np.where(frame[..., None], paint, wall)
    return _shop_signs(rng, wall, ground & shop & (in_floor > high) & (in_floor < 0.99), column, bays)


def _shop_signs(
    rng: np.random.Generator, wall: np.ndarray, board: np.ndarray, column: np.ndarray, bays: int
) -> np.ndarray:
    """Coloured boards above the shop windows, three bays a shop."""
    boards = rng.uniform(30, 220, (bays // 3 + 1, 3)).astype(np.float32)
    return np.where(board[..., None], boards[column // 3], wall)


def _masonry(rng: np.random.Generator, color: np.ndarray, along: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Bricks, blocks or plaster: every stone its own shade, joints darker."""
    long, high, depth = ((0.5, 0.16, 0.10), (1.0, 0.5, 0.08), (2.5, 2.5, 0.05))[rng.integers(3)]
    course = np.floor(up / high)
    stone = np.floor(along / long + 0.5 * (course % 2))
    noise = rng.uniform(-1, 1, (128, 128)).astype(np.float32)
    shade = 1 + depth * noise[course.astype(int) & 127, stone.astype(int) & 127]
    joint = np.float32(depth) * (np.mod(up / high, 1) < 0.12)
    return color * (shade - joint + 0.02 * (up / 10))[..., None]


def draw_fence(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, side: int, x: float, z0: float, z1: float
) -> None:
    """A fence along the street: boards, or a railing that one sees through (labelled as a whole, as in CamVid)."""
    height = rng.uniform(1.1, 1.9)
    plane = camera.side_wall(x, z0, z1, height)
    if plane is None:
        return
    u, v = plane.u, plane.v
    kind = rng.choice(["boards", "railing", "bars"], p=[0.4, 0.35, 0.25])
    shade = light.on_side(side)

    # Bars are spaced so that they stay apart where they are seen; far ones merge into a veil, as they do in a picture.
    pitch = rng.uniform(0.16, 0.3)
    post = np.mod(u - z0, 2.0) < 0.14
    rail = (np.abs(v - 0.95 * height) < 0.05) | (np.abs(v - 0.25) < 0.05)
    if kind == "boards":
        color = np.asarray(rng.choice([[124, 92, 62], [150, 128, 98], [96, 100, 92], [196, 192, 182]]), np.float32)
        board = np.floor((u - z0) / pitch).astype(int)
        gap = np.mod((u - z0) / pitch, 1) < 0.12
        each = rng.uniform(0.82, 1.12, 256).astype(np.float32)[board & 255] - 0.3 * gap.astype(np.float32)
        drawn = v < height * (0.94 + 0.06 * (board % 2))
    else:
        color = np.asarray(rng.choice([[40, 44, 46], [52, 74, 58], [150, 154, 156], [210, 210, 206]]), np.float32)
        bars = np.mod((u - z0) / pitch, 1) < 0.34 if kind == "bars" else np.abs(v - 0.6 * height) < 0.05
        each, drawn = np.ones(u.shape, np.float32), post | rail | bars

    canvas.blend(
        plane.rows,
        plane.columns,
        color * (each * shade)[..., None],
        plane.inside & drawn,
        None,
        depth=plane.depth,
        grain=0.05,
        stain=0.08,
    )
    np.copyto(canvas.label[plane.rows, plane.columns], np.uint8(Label.FENCE), where=plane.inside)
