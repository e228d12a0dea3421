"""Street scenes drawn by a seeded generator: a data set that needs no download."""

from __future__ import annotations

from pspnet_fast.data.scenes.draw import draw_scene
from pspnet_fast.data.scenes.write import write_scenes

__all__ = ["draw_scene", "write_scenes"]
