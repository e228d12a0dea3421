"""What a folder of pictures and label maps holds: which are the labels, how they pair, and which classes they have."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pspnet_fast.data.check import Watch, mapped
from pspnet_fast.data.classes import CAMVID, CITYSCAPES, IGNORE, VOC, Color, DatasetError, voc_colormap
from pspnet_fast.data.decoding import DEFAULT_READING, opened
from pspnet_fast.data.files import read_lines, walk_files
from pspnet_fast.data.labels import code_color, color_code, color_text, read_values
from pspnet_fast.data.own import IGNORED
from pspnet_fast.data.reading import IMAGE_SUFFIXES

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
"""What folders of splits are called; those of a test split are left alone."""

_TEST = ("test", "testing")
_LABEL_WORDS = re.compile(r"label|mask|annot|ground.?truth|\bgt|_gt|seg", re.IGNORECASE)
_VOID_WORDS = ("void", "unlabeled", "unlabelled", "unlabel", "ignore", "ignored", "unknown", "none")
_MOST_VALUES = 254  # more are no classes


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
class ClassGuess:
    """The classes that label files hold, in the words of `OwnLabels`; `pixels` and `files` by the class's name."""

    coding: str
    classes: dict[str, Color]
    values: dict[int | str, str]
    ignore_value: int | None
    pixels: dict[str, int]
    files: dict[str, int]


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
    found = []
    for labels in groups:
        for images in groups:
            for image_affix, label_affix in _affixes(images, labels):
                pairing = _paired(images, labels, image_affix, label_affix)
                if pairing.pairs and _distinct(pairing.pairs[0][1]) <= _MOST_VALUES:
                    hints = len(_LABEL_WORDS.findall(f"{labels.pattern}/{label_affix}"))
                    hints -= len(_LABEL_WORDS.findall(f"{images.pattern}/{image_affix}"))
                    found.append((len(pairing.pairs), hints, -_distinct(pairing.pairs[0][1]), pairing))
    if not found:
        folders = ", ".join(sorted(group.pattern for group in groups))
        raise DatasetError(
            f"{root}: no label maps that share their names with images (folders: {folders}). Labels are PNG, TIFF or "
            "BMP files of class indices or colours, named as their image, perhaps with an ending such as _mask"
        )
    return max(found, key=lambda entry: entry[:3])[-1]


def find_classes(
    root: Path, labels: Sequence[Path], *, names_file: Path | None = None, workers: int = 0, watch: Watch = iter
) -> ClassGuess:
    """Read all label files; the classes are the values or colours in them.

    Names come from `names_file`, or a text file in `root`, of a name, or a name and its colour, a line: for the values
    0, 1, 2, …, or for those found if they are as many. Colours of CamVid, Cityscapes and Pascal VOC have names. Values
    255 and 65535, and the names void, unlabelled and ignore, do not count, unless there are only the values 0 and 255.

    Raises:
        DatasetError: a label cannot be read, they hold too many values for classes, or `names_file` no names.
    """
    named = _named_colors(root) if names_file is None else _names_in(names_file)
    if names_file is not None and not named:
        raise DatasetError(f"{names_file}: holds no names of classes; write one a line, with R, G, B or without")
    colored = any(map(_is_colored, labels[:8]))
    pixels: Counter[int] = Counter()
    files: Counter[int] = Counter()
    results = watch(mapped(partial(_counted, labels, colored), range(len(labels)), workers))
    for path, counts in zip(labels, results, strict=True):
        pixels.update(counts)
        files.update(counts.keys())
        if len(pixels) > _MOST_VALUES:
            kind = "colours; masks have hard edges" if colored else "values"
            raise DatasetError(f"{path}: the labels up to this one hold more than {_MOST_VALUES} {kind}: no classes")
    guess = _color_classes(sorted(pixels), named) if colored else _index_classes(sorted(pixels), named, labels[0])
    classes, values, ignore_value, names = guess
    return ClassGuess(
        "colors" if colored else "indices",
        classes,
        values,
        ignore_value,
        {name: sum(pixels[value] for value in pixels if names[value] == name) for name in [*classes, IGNORED]},
        {
            name: max((files[value] for value in pixels if names[value] == name), default=0)
            for name in [*classes, IGNORED]
        },
    )


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


def _is_colored(path: Path) -> bool:
    with opened(path, DEFAULT_READING) as picture:
        return picture.mode in ("RGB", "RGBA")


def _distinct(path: Path) -> int:
    """Different values or colours in what may be a label file; a large number for what cannot be one."""
    try:
        return len(np.unique(read_values(path, colors=_is_colored(path))))
    except DatasetError:
        return _MOST_VALUES + 1


def _counted(labels: Sequence[Path], colored: bool, index: int) -> dict[int, int]:
    values, counts = np.unique(read_values(labels[index], colors=colored), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _named_colors(root: Path) -> list[tuple[str, Color | None]]:
    """Names, perhaps with colours, from the text file in the folder that has the most of them."""
    best: list[tuple[str, Color | None]] = []
    for path in sorted(root.glob("*")):
        if path.suffix.lower() not in (".txt", ".csv") or path.stat().st_size > 100_000:
            continue
        entries = _names_in(path)
        colored = sum(color is not None for _, color in entries)
        if not colored and not re.search(r"class|label|name|code", path.stem, re.IGNORECASE):
            continue
        if (len(entries), colored) > (len(best), sum(color is not None for _, color in best)):
            best = entries
    return best


def _names_in(path: Path) -> list[tuple[str, Color | None]]:
    """The lines of a text file that are a name, or those that are a name and its colour; none if one occurs twice."""
    entries: list[tuple[str, Color | None]] = []
    for line in read_lines(path)[0]:
        color = re.search(r"(?<!\d)(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?!\d)", line)
        name = re.search(r"[^\W\d][\w ./-]*", line.replace(color[0], " ") if color else line)
        if name is not None and (color is not None or line.strip() == name[0].strip()):
            rgb = None if color is None else tuple(min(255, int(part)) for part in color.groups())
            entries.append((name[0].strip(), rgb))  # type: ignore[arg-type]
    entries = [entry for entry in entries if entry[1] is not None] or entries
    return entries if len({name for name, _ in entries}) == len(entries) else []


_Guessed = tuple[dict[str, Color], dict[int | str, str], int | None, dict[int, str]]
"""Classes, value map, ignored value, and the name of each value found."""


def _color_classes(codes: Sequence[int], named: Sequence[tuple[str, Color | None]]) -> _Guessed:
    colors = {code: code_color(code) for code in codes}
    tables = [{color_code(color): name for name, color in named if color is not None}]
    tables += [
        {color_code(color): name for name, color in zip(info.classes, info.palette, strict=True)}
        for info in (CAMVID, CITYSCAPES, VOC)
    ]
    known = max(tables, key=lambda table: len(table.keys() & colors.keys()))
    if 2 * len(known.keys() & colors.keys()) < len(colors):
        known = {0: "background"}
    elif 0 not in known:
        known = {**known, 0: "void"}
    names = {code: known.get(code, f"color {color_text(color)[1:]}") for code, color in colors.items()}
    names = {code: IGNORED if name.lower() in _VOID_WORDS else name for code, name in names.items()}
    order = [code for code in [*known, *codes] if code in colors and names[code] != IGNORED]
    classes = {names[code]: colors[code] for code in order}
    values: dict[int | str, str] = {color_text(colors[code]): IGNORED for code in codes if names[code] == IGNORED}
    return classes, values, IGNORE, names


def _index_classes(found: Sequence[int], named: Sequence[tuple[str, Color | None]], label: Path) -> _Guessed:
    if list(found) == [0, 255]:
        names = {0: "background", 255: "foreground"}
        ignore_value = None
    else:
        ignore_value = 65535 if 65535 in found else IGNORE
        names = {value: f"class {value}" for value in found if value != ignore_value}
        if names and max(names) < len(named):
            names = {index: name for index, (name, _) in enumerate(named) if index != ignore_value}
        elif len(names) == len(named):
            names = {value: name for value, (name, _) in zip(names, named, strict=True)}
    names = {value: IGNORED if name.lower() in _VOID_WORDS else name for value, name in names.items()}
    kept = [value for value, name in names.items() if name != IGNORED]
    with opened(label, DEFAULT_READING) as picture:
        palette = np.reshape(picture.getpalette() or [], (-1, 3)).tolist() if picture.mode == "P" else []
    default = voc_colormap(len(kept) + 1)[1:]
    given = {name: color for name, color in named if color is not None}
    classes = {}
    for index, value in enumerate(kept):
        color = palette[value] if value < len(palette) else given.get(names[value], default[index])
        classes[names[value]] = (int(color[0]), int(color[1]), int(color[2]))
    plain = list(names) == list(range(len(kept))) == kept
    values: dict[int | str, str] = {} if plain else {value: names[value] for value in sorted(names)}
    return classes, values, ignore_value, names | ({} if ignore_value is None else {ignore_value: IGNORED})
