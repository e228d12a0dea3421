"""Finding the samples of a data set on disk, and saying what is wrong with a folder that is not as it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pspnet_fast.data.info import DatasetError
from pspnet_fast.data.sources import DatasetSource, Layout, Sample


def find_samples(source: DatasetSource, root: Path, split: str) -> tuple[list[Sample], np.ndarray]:
    """All samples of a split in the order of their names, and the table of their label values.

    Raises:
        DatasetError: unknown split, missing folder or split file, an image without its label, a label without its
            image, two images of one name, or no image at all.
    """
    layouts = source.layouts
    name = source.info.name if source.info else "list"
    if split not in layouts[0].splits:
        raise DatasetError(f"{name}: split '{split}' does not exist; choose from {', '.join(layouts[0].splits)}")

    root = _find_root(source, root, split)
    # Cityscapes ships labelIds and many have made labelTrainIds too: read the more complete, in doubt the first.
    layout = max(layouts, key=lambda layout: _count_labels(root, layout, split))
    image_dir = _folder(root, layout.images, layout, split)
    label_dir = _folder(root, layout.labels, layout, split)

    images = _files(image_dir, layout.image_suffixes)
    if not images:
        raise DatasetError(
            f"{image_dir}: no image ({' '.join(layout.image_suffixes)}) for split '{split}' of {name}; {source.origin}"
        )
    if not label_dir.is_dir() and split != "test":
        raise DatasetError(f"{label_dir}: folder of the labels not found, though {image_dir} exists; {source.origin}")

    labels = _files(label_dir, (layout.label_suffix,))
    if layout.split_file:
        names = _split_names(root / layout.split_file.format(split=layout.splits[split]), source.origin)
    else:
        names = sorted(images.keys() | labels.keys())

    # Test splits come without labels, or with all of them.
    unlabelled = split == "test" and not any(name in labels for name in names)
    _check_pairs(names, images, dict.fromkeys(names) if unlabelled else labels, image_dir, label_dir, layout)
    return [Sample(images[name], None if unlabelled else labels[name]) for name in names], layout.table


def read_list_file(list_file: Path, root: Path, split: str) -> list[Sample]:
    """Samples of a semseg list file: `image label` a line, relative to `root`, split at a tab or else at blanks.

    Lines with an image alone are allowed in split "test"; empty lines are skipped.

    Raises:
        DatasetError: no such file, a line that is neither, an image or label that does not exist, or no line at all.
    """
    if not list_file.is_file():
        raise DatasetError(f"{list_file}: list file not found; give list_file= a text file of 'image label' lines")
    samples = []

    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), start=1):
        fields = [part for part in (line.strip().split("\t") if "\t" in line else line.split()) if part]
        if not fields:
            continue
        if len(fields) > 2 or (len(fields) == 1 and split != "test"):
            raise DatasetError(
                f"{list_file}:{number}: expected 'image label', got {line.strip()!r}; "
                "separate the two by a tab if the paths contain blanks"
            )

        paths = [root / part for part in fields]
        for path in paths:
            if not path.is_file():
                raise DatasetError(
                    f"{path}: not found, named by {list_file}:{number}; paths are relative to root={root}"
                )
        samples.append(Sample(paths[0], paths[1] if len(paths) == 2 else None))

    if not samples:
        raise DatasetError(f"{list_file}: no samples; expected one 'image label' a line, relative to {root}")
    return samples


def _folder(root: Path, pattern: str, layout: Layout, split: str) -> Path:
    return root / pattern.format(split=layout.splits[split])


def _count_labels(root: Path, layout: Layout, split: str) -> int:
    return len(_files(_folder(root, layout.labels, layout, split), (layout.label_suffix,)))


def _find_root(source: DatasetSource, root: Path, split: str) -> Path:
    """The first of the sub-folders that holds the split's images."""
    wanted = [_folder(root / sub, source.layouts[0].images, source.layouts[0], split) for sub in source.subfolders]
    for sub, folder in zip(source.subfolders, wanted, strict=True):
        if folder.is_dir():
            return root / sub

    name = source.info.name if source.info else "list"
    looked = " or ".join(str(folder) for folder in wanted)
    raise DatasetError(f"{looked}: folder not found for split '{split}' of {name}, root={root}; {source.origin}")


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files below a folder by the name they share with their partner: the relative path without the suffix."""
    found: dict[str, Path] = {}

    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        relative = path.relative_to(folder).as_posix()
        suffix = next((suffix for suffix in suffixes if relative.lower().endswith(suffix.lower())), None)
        if suffix is None or path.name.startswith("."):
            continue
        name = relative[: -len(suffix)]
        if name in found:
            raise DatasetError(f"{path}: has the same base name as {found[name].name}; keep one of the two")
        found[name] = path

    return found


def _split_names(path: Path, origin: str) -> list[str]:
    if not path.is_file():
        raise DatasetError(f"{path}: file with the names of the split not found; {origin}")
    names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise DatasetError(f"{path}: names no picture; {origin}")
    return names


def _check_pairs(
    names: Sequence[str],
    images: Mapping[str, Path],
    labels: Mapping[str, Path | None],
    image_dir: Path,
    label_dir: Path,
    layout: Layout,
) -> None:
    for missing, folder, suffix, partner in (
        ([name for name in names if name not in labels], label_dir, layout.label_suffix, image_dir),
        ([name for name in names if name not in images], image_dir, layout.image_suffixes[0], label_dir),
    ):
        if not missing:
            continue
        kind, other = ("label", "image") if folder is label_dir else ("image", "label")
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DatasetError(
            f"{folder / (missing[0] + suffix)}: no such {kind}{more}, but {partner} or the split has it: "
            f"{len(images)} images and {len(labels)} labels do not match; add the missing {kind} or remove the {other}"
        )
