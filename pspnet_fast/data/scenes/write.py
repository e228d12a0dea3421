"""Scenes on disk, in CamVid's layout."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from pspnet_fast.data.classes import DatasetError
from pspnet_fast.data.scenes.draw import VERSION, draw_scene

MARKER = "scenes.json"


def write_scenes(
    root: str | Path, train: int = 200, val: int = 40, size: tuple[int, int] = (180, 240), seed: int = 0
) -> Path:
    """Draw a data set of street scenes: images/{train,val}/*.jpg and labels/{train,val}/*.png, CamVid's layout.

    The folder appears under its name only when it is complete, with scenes.json saying what is in it (a run that is
    killed leaves a hidden `.NAME.partial-*` folder beside it, which nothing reads). Called again with the same
    arguments it returns at once; it never replaces a folder that holds anything else.

    Args:
        root: folder to write, created with its parents; it may exist if it is empty.
        train, val: number of scenes of each split. The first n scenes of a seed are the same for any number.
        size: (height, width).
        seed: of the whole set.

    Returns:
        `root` as a path.

    Raises:
        DatasetError: `root` holds scenes of other arguments, or files that are no scenes.
        ValueError: `train` or `val` is less than 1, or `size` is too small to show a street (see `draw_scene`).
    """
    root = Path(root)
    if train < 1 or val < 1:
        raise ValueError(f"train={train}, val={val}: each split needs at least one scene")
    wanted = {"generator": VERSION, "seed": seed, "train": train, "val": val, "size": list(size)}
    if _is_written(root, wanted):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        for split_number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_split(partial, split, [(seed, split_number, index) for index in range(count)], size)
        (partial / MARKER).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes folders private
        _publish(partial, root, wanted)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    return root


def _write_split(folder: Path, split: str, seeds: list[tuple[int, int, int]], size: tuple[int, int]) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)

    for index, scene_seed in enumerate(seeds):
        image, label = draw_scene(scene_seed, size)
        Image.fromarray(image).save(images / f"{index:05d}.jpg", quality=92)
        Image.fromarray(label).save(labels / f"{index:05d}.png")


def _publish(partial: Path, root: Path, wanted: dict[str, Any]) -> None:
    """Move the finished folder to its name. Another process may have been faster: then its scenes stay."""
    try:
        os.replace(partial, root)
    except OSError:
        if not _is_written(root, wanted):
            raise


def _is_written(root: Path, wanted: dict[str, Any]) -> bool:
    """Whether `root` already holds the wanted scenes; False if there is nothing, an error if something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(
            f"{root}: exists and is not a folder of scenes (no readable {MARKER}); choose an empty or new folder"
        ) from None

    if found != wanted:
        raise DatasetError(
            f"{root / MARKER}: holds other scenes, {json.dumps(found)}, than wanted, {json.dumps(wanted)}; "
            "choose another folder or delete this one"
        )
    return True
