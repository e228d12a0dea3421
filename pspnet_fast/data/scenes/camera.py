"""The camera of a scene, and the planes of the street that it sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pspnet_fast.data.scenes.canvas import Point

NEAR = 1.2
"""Metres in front of the camera where everything is cut off."""


class Plane(NamedTuple):
    """The canvas pixels that show a rectangle of the street: `u` and `v` in metres at each, and their distance."""

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray
    depth: np.ndarray
    inside: np.ndarray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street.

    World: x metres to the right of the camera, y above the ground, z ahead. Canvas: pixels from the top left.

    Args:
        width, height: of the canvas.
        focal: focal length in canvas pixels.
        center: the vanishing point of the street.
        eye: height of the camera above the ground.
    """

    width: int
    height: int
    focal: float
    center: Point
    eye: float

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / max(z, NEAR)
        return self.center[0] + scale * x, self.center[1] + scale * (self.eye - y)

    def outline(self, points: Iterable[tuple[float, float, float]]) -> list[Point]:
        return [self.project(*point) for point in points]

    def ground(self) -> Plane:
        """The ground: u = x, v = z."""
        rows = slice(min(self.height, int(self.center[1]) + 1), self.height)
        y, x = self._pixels(rows, slice(0, self.width))
        depth = self.focal * self.eye / np.maximum(y - self.center[1], 1e-3)
        u = (x - self.center[0]) * depth / self.focal
        return Plane(rows, slice(0, self.width), u, np.broadcast_to(depth, u.shape), depth, np.ones(u.shape, bool))

    def side_wall(self, x: float, z0: float, z1: float, top: float) -> Plane | None:
        """An upright wall along the street at `x`, from z0 to z1: u = z, v = y. None if it is out of sight."""
        z0 = max(z0, NEAR)
        near, far = self.center[0] + self.focal * x / z0, self.center[0] + self.focal * x / z1
        high = min(self.project(x, top, z0)[1], self.project(x, top, z1)[1])
        window = self._window(min(near, far), max(near, far), high, self.project(x, 0, z0)[1])
        if window is None:
            return None

        rows, columns = window
        py, px = self._pixels(rows, columns)
        # Columns are only ever on the wall's own side of the vanishing point, where the distance is finite.
        away = np.maximum((px - self.center[0]) * np.sign(x), 1e-3)
        depth = self.focal * abs(x) / away
        v = self.eye - (py - self.center[1]) * depth / self.focal
        inside = (v >= 0) & (v <= top) & (depth >= z0) & (depth <= z1)
        return Plane(rows, columns, np.broadcast_to(depth, v.shape), v, depth, inside)

    def facing_wall(self, z: float, x0: float, x1: float, top: float) -> Plane | None:
        """An upright wall across the view at distance `z`, from x0 to x1: u = x, v = y. None if it is out of sight."""
        if z < NEAR:
            return None
        left, high = self.project(min(x0, x1), top, z)
        right, low = self.project(max(x0, x1), 0, z)
        window = self._window(left, right, high, low)
        if window is None:
            return None

        rows, columns = window
        py, px = self._pixels(rows, columns)
        u, v = np.broadcast_arrays(
            (px - self.center[0]) * z / self.focal, self.eye - (py - self.center[1]) * z / self.focal
        )
        inside = (u >= min(x0, x1)) & (u <= max(x0, x1)) & (v >= 0) & (v <= top)
        return Plane(rows, columns, u, v, np.asarray(z, np.float32), inside)

    def _pixels(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
        x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + 0.5
        return y, x

    def _window(self, left: float, right: float, top: float, bottom: float) -> tuple[slice, slice] | None:
        x0, x1 = max(0, int(left)), min(self.width, int(right) + 1)
        y0, y1 = max(0, int(top)), min(self.height, int(bottom) + 1)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None
