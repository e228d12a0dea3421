"""Which classes label maps have: their names, their colours, and their values in the files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pspnet_fast.data.check import Watch
from pspnet_fast.data.classes import CAMVID, CITYSCAPES, IGNORE, VOC, Color, DatasetError, voc_colormap
from pspnet_fast.data.files import read_lines
from pspnet_fast.data.labels import IGNORED, code_color, color_code, color_text, read_values, value_text
from pspnet_fast.data.processes import mapped
from pspnet_fast.data.reading import DEFAULT_READING, opened

_VOID_WORDS = ("void", "unlabeled", "unlabelled", "unlabel", "ignore", "ignored", "unknown", "none")
_MOST_VALUES = 254  # more are no classes
_IGNORED_VALUES = (IGNORE, 65535)  # of indices
_STRAY_SHARE = 1e-4  # of all pixels: classes with fewer are pointed out


@dataclass(frozen=True)
class ClassGuess:
    """The classes that label files hold, in the words of `OwnLabels`; `pixels` and `files` by the class's name."""

    coding: str
    classes: dict[str, Color]
    values: dict[int | str, str]
    ignore_value: int | None
    pixels: dict[str, int]
    files: dict[str, int]

    @property
    def strays(self) -> list[str]:
        """Classes with so few pixels that they may be mistakes in the drawing or the resizing of a mask."""
        fewest = _STRAY_SHARE * sum(self.pixels.values())
        return [name for name in self.classes if 0 < self.pixels[name] < fewest]


def find_classes(
    root: Path, labels: Sequence[Path], *, names_file: Path | None = None, workers: int = 0, watch: Watch = iter
) -> ClassGuess:
    """Read all label files; the classes are the values or colours in them.

    Names come from `names_file`, or a text file in `root`, of a name, or a name and its colour, a line: for the values
    0, 1, 2, …, or for those found if they are as many. Colours of CamVid, Cityscapes and Pascal VOC have names. Values
    255 and 65535, and the names void, unlabelled and ignore, do not count, unless there are only the values 0 and 255.

    Raises:
        DatasetError: a label cannot be read, they hold too many values for classes, or `names_file` no names
            that fit them.
    """
    named = _named_colors(root) if names_file is None else _given_names(names_file)
    colored = any(map(is_colored, labels[:8]))
    pixels: Counter[int] = Counter()
    files: Counter[int] = Counter()
    results = watch(mapped(partial(_counted, labels, colored), range(len(labels)), workers))
    for path, counts in zip(labels, results, strict=True):
        pixels.update(counts)
        files.update(counts.keys())
        _check_values(pixels, f"{path}: the labels up to this one hold", colored=colored)
    guess = _color_classes(sorted(pixels), named) if colored else _index_classes(sorted(pixels), named, labels[0])
    classes, values, ignore_value, names = guess
    if names_file is not None and not {name for name, _ in named} & classes.keys():
        kind, remedy = ("colours", "a name and its R, G, B") if colored else ("values", "a name for each value")
        raise DatasetError(
            f"{names_file}: its {len(named)} names do not fit the {len(pixels)} {kind} in the labels, from "
            f"{value_text(min(pixels), colors=colored)} to {value_text(max(pixels), colors=colored)}; write {remedy}, "
            "one a line"
        )
    found = {name: [value for value in pixels if names[value] == name] for name in [*classes, IGNORED]}
    return ClassGuess(
        "colors" if colored else "indices",
        classes,
        values,
        ignore_value,
        {name: sum(pixels[value] for value in own) for name, own in found.items()},
        {name: max((files[value] for value in own), default=0) for name, own in found.items()},
    )


def is_colored(path: Path) -> bool:
    with opened(path, DEFAULT_READING) as picture:
        return picture.mode in ("RGB", "RGBA")


def distinct_values(path: Path) -> int:
    """Different values or colours in what may be a label file.

    Raises:
        DatasetError: it cannot be one.
    """
    colored = is_colored(path)
    values = np.unique(read_values(path, colors=colored))
    _check_values(values.tolist(), f"{path}: holds", colored=colored)
    return len(values)


def _check_values(values: Iterable[int], what: str, *, colored: bool) -> None:
    """Raise DatasetError for more values, or colours, than there may be classes."""
    if len(set(values) - set(() if colored else _IGNORED_VALUES)) > _MOST_VALUES:
        kind = "colours; masks have hard edges" if colored else "values"
        raise DatasetError(f"{what} more than {_MOST_VALUES} {kind}: no classes")


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
        if _twice(entries) or (not colored and not re.search(r"class|label|name|code", path.stem, re.IGNORECASE)):
            continue
        if (len(entries), colored) > (len(best), sum(color is not None for _, color in best)):
            best = entries
    return best


def _given_names(path: Path) -> list[tuple[str, Color | None]]:
    """The names in a file that is said to hold them.

    Raises:
        DatasetError: it holds none, or one twice.
    """
    entries = _names_in(path)
    if not entries:
        raise DatasetError(f"{path}: holds no names of classes; write one a line, with R, G, B or without")
    if twice := _twice(entries):
        raise DatasetError(f"{path}: names {', '.join(map(repr, twice))} twice; give each class a name of its own")
    return entries


def _twice(entries: Sequence[tuple[str, Color | None]]) -> list[str]:
    return [name for name, count in Counter(name for name, _ in entries).items() if count > 1]


def _names_in(path: Path) -> list[tuple[str, Color | None]]:
    """The lines of a text file that are a name, or those that are a name and its colour."""
    entries: list[tuple[str, Color | None]] = []
    for line in read_lines(path)[0]:
        color = re.search(r"(?<!\d)(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?!\d)", line)
        name = re.search(r"[^\W\d][\w ./-]*", line.replace(color[0], " ") if color else line)
        if name is not None and (color is not None or line.strip() == name[0].strip()):
            rgb = None if color is None else tuple(min(255, int(part)) for part in color.groups())
            entries.append((name[0].strip(), rgb))  # type: ignore[arg-type]
    return [entry for entry in entries if entry[1] is not None] or entries


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
