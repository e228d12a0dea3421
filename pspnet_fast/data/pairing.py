"""Which files below a folder are images and which their label maps, and how these pair."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pspnet_fast.data.classes import DatasetError
from pspnet_fast.data.files import walk_files
from pspnet_fast.data.guess import distinct_values
from pspnet_fast.data.reading import IMAGE_SUFFIXES

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
"""What folders of splits are called; those of a test split are left alone."""

_TEST = ("test", "testing")
_LABEL_WORDS = re.compile(r"label|mask|annot|ground.?truth|\bgt|_gt|seg", re.IGNORECASE)


@dataclass(frozen=True)
class Pairing:
    """Where images and labels lie: folders with {split} where there are splits, and what is cut off their names."""

    image_folder: str
    label_folder: str
    image_suffixes: tuple[str, ...]
    label_suffix: str
    splits: tuple[str, ...]  # the names of the training and of the validation split, as far as there are
    pairs: tuple[tuple[Path, Path], ...]
    unpaired: tuple[Path, ...]  # images without a label, and labels without an image


@dataclass(frozen=True)
class _Group:
    """Picture files of one folder pattern, as (split, name below the folder, path)."""

    pattern: str
    files: tuple[tuple[str, str, Path], ...]


def find_pairs(root: Path) -> Pairing:
    """The images and labels below a folder, by the names that they share.

    Raises:
        DatasetError: no pictures, or none that pair as an image and a label map.
    """
    groups = _groups(root)
    if not groups:
        raise DatasetError(f"{root}: holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    found, refused = [], []
    for labels in groups:
        for images in groups:
            for image_affix, label_affix in _affixes(images, labels):
                pairing = _paired(images, labels, image_affix, label_affix)
                if not pairing.pairs:
                    continue
                hints = len(_LABEL_WORDS.findall(f"{labels.pattern}/{label_affix}"))
                hints -= len(_LABEL_WORDS.findall(f"{images.pattern}/{image_affix}"))
                try:
                    found.append((len(pairing.pairs), hints, -distinct_values(pairing.pairs[0][1]), pairing))
                except DatasetError as error:
                    refused.append((len(pairing.pairs), hints, str(error)))
    if not found:
        folders = ", ".join(sorted(group.pattern for group in groups))
        raise DatasetError(
            f"{root}: no label maps that share their names with images (folders: {folders}). Labels are PNG, TIFF or "
            "BMP files of class indices or colours, named as their image, perhaps with an ending such as _mask"
            + (f".\nThe most likely ones cannot be used: {max(refused)[-1]}" if refused else "")
        )
    return max(found, key=lambda entry: entry[:3])[-1]


def _groups(root: Path) -> list[_Group]:
    groups: dict[str, list[tuple[str, str, Path]]] = {}
    for path in walk_files(root):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        parts = path.relative_to(root).parts
        pattern: list[str] = []
        split = ""
        for part in parts[:-1]:
            if part.lower() in (*SPLITS, *_TEST) and not split:
                pattern.append("{split}")
                split = part
            elif not [name for name in pattern if name != "{split}"]:
                pattern.append(part)
            else:
                break
        if split.lower() not in _TEST:
            name = "/".join(parts[len(pattern) :])
            groups.setdefault("/".join(pattern) or ".", []).append((split, name, path))
    return [_Group(pattern, tuple(files)) for pattern, files in groups.items()]


def _affixes(images: _Group, labels: _Group) -> Iterable[tuple[str, str]]:
    """What may be cut off the images' and the labels' names, before the suffix of the file."""
    yield "", ""
    stems = [os.path.splitext(name)[0] for _, name, _ in labels.files]
    others = {os.path.splitext(name)[0] for _, name, _ in images.files}
    endings = Counter(
        stem[len(other) :] for stem in stems for other in (stem[:end] for end in range(1, len(stem))) if other in others
    )
    for ending, _ in endings.most_common(3):
        yield "", ending
    if images is not labels:
        ends = [_common_ending(os.path.splitext(name)[0] for _, name, _ in group.files) for group in (images, labels)]
        if any(ends):
            yield ends[0], ends[1]


def _common_ending(stems: Iterable[str]) -> str:
    """The ending that all stems share, from a separator on, as in _leftImg8bit."""
    shared = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]  # noqa: RUF071 - characters are meant
    start = re.search(r"[_.-]", shared)
    return shared[start.start() :] if start else ""


def _paired(images: _Group, labels: _Group, image_affix: str, label_affix: str) -> Pairing:
    """Files of both groups by their common names; among several kinds of label files, the most frequent."""
    sides: list[dict[tuple[str, str], Path]] = []
    for group, affix in ((images, image_affix), (labels, label_affix)):
        found = {}
        for split, name, path in group.files:
            stem, suffix = os.path.splitext(name)
            lossless = suffix.lower() in (".png", ".bmp", ".tif", ".tiff", ".ppm")
            beside = images is labels and not label_affix and lossless == (len(sides) == 0)
            if stem.endswith(affix) and not beside and (lossless or len(sides) == 0):
                found[split, stem.removesuffix(affix)] = path
        sides.append(found)
    kinds = Counter(path.suffix.lower() for path in sides[1].values())
    suffix = kinds.most_common(1)[0][0] if kinds else ""
    sides[1] = {key: path for key, path in sides[1].items() if path.suffix.lower() == suffix}
    if images is labels:
        sides[0] = {key: path for key, path in sides[0].items() if path not in set(sides[1].values())}
    common = sorted(sides[0].keys() & sides[1].keys())
    splits = {SPLITS[split.lower()]: split for split, _ in common if split}
    return Pairing(
        images.pattern,
        labels.pattern,
        tuple(f"{image_affix}{end}" for end in sorted({sides[0][key].suffix.lower() for key in common})),
        f"{label_affix}{suffix}",
        tuple(splits[kind] for kind in ("train", "val") if kind in splits),
        tuple((sides[0][key], sides[1][key]) for key in common),
        tuple(path for side in sides for key, path in side.items() if not (key in sides[0] and key in sides[1])),
    )
