"""The commands that read or write data sets: check, scenes and init."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pspnet_fast.data import DatasetError, read_header, write_scenes
from pspnet_fast.data.check import check_dataset, list_problems
from pspnet_fast.data.classes import IGNORE
from pspnet_fast.data.files import expand
from pspnet_fast.data.guess import ClassGuess, find_classes
from pspnet_fast.data.labels import IGNORED, color_text
from pspnet_fast.data.pairing import Pairing, find_pairs
from pspnet_fast.files import replacing

from .config_io import config_from_dict, load_config
from .console import Data, Overrides, Root, as_json, as_overrides, data_changes, listed, say, warn
from .datasets import open_split
from .errors import ConfigError
from .progress import watched

# Of init: how few pictures it takes, how many it holds out for validation, and the length of the run that it writes.
_FEWEST = 2
_VAL_FRACTION, _FEWEST_SPLIT = 0.2, 3  # of fewer pictures none is held out
_STEPS = 4000


def check(
    overrides: Overrides = None,
    data: Data = None,
    root: Root = None,
    split: Annotated[str | None, typer.Option(help="One split; those of training and validation by default.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Read every image too, not only its header.")] = False,
    config: Annotated[str | None, typer.Option(help="A YAML file that names the data set.")] = None,
) -> None:
    """Read every label of a data set: files that cannot be used, sizes, and pixels of each class."""
    changes = list(overrides or []) + data_changes(data) + as_overrides({"data.root": root})
    tree = {"run": {"max_steps": 1}}  # a configuration needs a length; nothing is trained
    options = (config_from_dict(tree, changes) if config is None else load_config(config, changes)).data
    splits = [split] if split is not None else [options.train_split]
    if split is None and options.validates:
        splits.append(str(options.val_split))
    problems, count = [], 0
    for name in splits:
        dataset = open_split(options, name, training=name == options.train_split)
        report = check_dataset(
            dataset,
            images=images,
            workers=min(options.workers, os.cpu_count() or 1),
            watch=partial(watched, name=f"check {name}", total=len(dataset)),
        )
        names = [*enumerate(dataset.info.classes), (IGNORE, "left out (255)")]
        rows = [(label, int(report.pixels[index]), int(report.labels[index])) for index, label in names]
        Console().print(_class_table(f"{dataset.info.name} {name}, {len(dataset)} images", rows))
        sizes = Counter({f"{width}x{height}": n for (width, height), n in report.sizes.items()})
        for what, counts in (("sizes", sizes), ("files", report.modes)):
            say(f"{what}: {listed([f'{key} ({n})' for key, n in counts.most_common()], 8)}")
        if report.unknown:
            found = [f"{value} ({pixels} pixels)" for value, pixels in report.unknown.most_common()]
            say(f"values that are no class: {listed(found, 20)}")
        problems += report.problems
        count += len(dataset)
    if problems:
        raise DatasetError(list_problems(problems, f"of {count} samples cannot be used", limit=50))


def _class_table(title: str, rows: Sequence[tuple[str, int, int]], values: Sequence[str] = ()) -> Table:
    """A row a class: its name, pixels, and labels that have it; the last row is what does not count.

    Args:
        values: what stands for each row in the files, for a column of its own.
    """
    table = Table(title=Text(title))
    for column in ("class", *(("in the files",) if values else ()), "pixels", "share", "labels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    total = max(1, sum(pixels for _, pixels, _ in rows))
    for index, (name, pixels, labels) in enumerate(rows):
        share = f"{100 * pixels / total:.2f} %"
        absent = pixels == 0 and index < len(rows) - 1
        table.add_row(
            Text(name), *values[index : index + 1], f"{pixels}", share, f"{labels}", style="yellow" if absent else None
        )
    return table


def scenes(
    root: Annotated[Path, typer.Argument(help="Folder to write; it gets images/ and labels/.", show_default=False)],
    train: Annotated[int, typer.Option(help="Training scenes.")] = 200,
    val: Annotated[int, typer.Option(help="Validation scenes.")] = 40,
    height: Annotated[int, typer.Option(help="Pixels.")] = 180,
    width: Annotated[int, typer.Option(help="Pixels.")] = 240,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
) -> None:
    """Draw a data set of street scenes, in CamVid's layout and classes."""
    try:
        write_scenes(root, train=train, val=val, size=(height, width), seed=seed)
    except DatasetError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    say(f"{train} + {val} scenes in {root}; now: pspnet-fast train --data scenes --root {root}")


def init(
    folder: Annotated[Path, typer.Argument(help="Folder with pictures and their label maps.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="File to write; FOLDER/data.yaml by default.")] = None,
    names: Annotated[
        Path | None, typer.Option(help="Text file with the classes in order, one a line; one in FOLDER by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes that read labels; one a core by default.")] = None,
) -> None:
    """Look at a folder of pictures and label maps, and write a configuration that trains on it."""
    folder = Path(os.path.abspath(expand(folder)))
    out = folder / "data.yaml" if out is None else out
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {'is a file; name the folder' if folder.exists() else 'no such folder'}")
    if out.exists() and not overwrite:
        raise ConfigError(
            f"{out} exists: it may hold your changes; choose another --out, or replace it with --overwrite"
        )
    pairing = find_pairs(folder)
    labels = [label for _, label in pairing.pairs]
    if len(labels) < _FEWEST:
        raise DatasetError(
            f"{folder}: {len(labels)} picture with a label; training takes {_FEWEST} at least, as it normalises over "
            "a batch"
        )
    classes = find_classes(
        folder,
        labels,
        names_file=names,
        workers=min(os.cpu_count() or 1, 8) if workers is None else workers,
        watch=partial(watched, name="labels", total=len(labels)),
    )
    if len(classes.classes) < 2:
        found = ", ".join(classes.classes) or "none"
        raise DatasetError(
            f"{folder}: the labels hold fewer than two classes ({found}); add pictures that show another"
        )
    text = _text(folder, pairing, classes)
    with replacing(out) as file:
        file.write(text)
    load_config(out)  # what is written can be read
    Console().print(_guess_table(classes, f"{folder}: {len(pairing.pairs)} pictures"))
    if pairing.unpaired:
        lost = listed([str(path.relative_to(folder)) for path in pairing.unpaired], 3)
        warn(f"{len(pairing.unpaired)} files have no partner ({lost}): add it, or move them elsewhere")
    if strays := classes.strays:
        warn(
            f"hardly any pixels are of {listed(strays, 8)}: if these are slips, call them {IGNORED} in the values of "
            f"{out.name}, and take them off its classes"
        )
    say(f"{out}: see whether names, and what is ignored, are right. Then:")
    say(f"  pspnet-fast check --data {out}")
    say(f"  pspnet-fast train {out}")


def _text(root: Path, pairing: Pairing, found: ClassGuess) -> str:
    """The configuration in YAML, with comments."""
    pairs, splits = pairing.pairs, pairing.splits
    count = len(pairs) if len(splits) != 2 else sum(splits[0] in path.parts for path, _ in pairs)
    held_out = 0.0 if len(splits) == 2 or count < _FEWEST_SPLIT else _VAL_FRACTION
    image_folder, label_folder = pairing.image_folder, pairing.label_folder
    if len(splits) == 1:  # a training split alone: its folder is the whole
        image_folder, label_folder = (text.replace("{split}", splits[0]) for text in (image_folder, label_folder))
    count = max(1, count - round(held_out * count))
    batch = max(2, min(8, count // 2))
    side = min(min(read_header(image).size) for image, _ in pairs[:: max(1, len(pairs) // 50)])
    crop = 8 * ((min(max(side, 33), 473) - 1) // 8) + 1
    every = max(1, math.ceil(_STEPS / 20 / max(1, count // batch)))
    train, val = splits if len(splits) == 2 else ("train", "val" if held_out else None)
    lines = [
        f"# {len(pairs)} pictures in {root}; written by: pspnet-fast init",
        "# Every option: pspnet-fast train --help, and docs/own_data.md of pspnet_fast.",
        "data:",
        "  name: folder",
        f"  root: {as_json(str(root))}",
        f"  image_folder: {as_json(image_folder)}    # below the root; {{split}} stands for the two names",
        f"  label_folder: {as_json(label_folder)}",
        f"  image_suffixes: {as_json(pairing.image_suffixes)}    # what an image has where its label has the next",
        f"  label_suffix: {as_json(pairing.label_suffix)}",
        f"  train_split: {as_json(train)}",
        f"  val_split: {as_json(val)}    # null: no validation",
        f"  val_fraction: {held_out}    # held out for validation where the folders have no splits",
        "  split_seed: 0",
        f"  labels: {found.coding}    # indices: a value a pixel; colors: the colour of the class",
        "  classes:    # in the order of their indices in predictions; colours as R, G, B",
        *(f"    {as_json(name)}: {as_json(color)}" for name, color in found.classes.items()),
    ]
    if found.values:
        lines.append("  values:    # what label files hold: the class, or ignore for pixels that do not count")
        lines += [f"    {as_json(value)}: {as_json(name)}" for value, name in found.values.items()]
    lines += [
        f"  ignore_value: {as_json(found.ignore_value)}    # does not count either (indices)",
        "  reduce_zero_label: false    # true: 0 does not count, and i is class i - 1",
        "  unknown_labels: error    # or ignore: values that are named nowhere do not count",
        "  allow_absent_classes: true    # a class that only held-out pictures have is a warning",
        f"  crop: {crop}    # pixels of a training sample",
        f"  workers: {min(4, os.cpu_count() or 1)}    # processes that read samples",
        "model:",
        "  layers: 50    # 18 trains on a CPU",
        "  # backbone: resnet50    # together with",
        "  # pretrained: imagenet    # torchvision's weights: reaches a given accuracy in far fewer steps",
        "optim:",
        f"  batch_size: {batch}",
        "run:",
        f"  max_steps: {_STEPS}",
        f"  validate_every: {every}    # epochs",
    ]
    return "\n".join(lines) + "\n"


def _guess_table(found: ClassGuess, title: str) -> Table:
    given: dict[str, list[str]] = {}
    for value, name in found.values.items():
        given.setdefault(name, []).append(str(value))
    if found.ignore_value is not None and found.coding == "indices":
        given.setdefault(IGNORED, []).append(str(found.ignore_value))
    values = []
    for index, name in enumerate([*found.classes, IGNORED]):
        color = found.classes.get(name)
        own = [] if color is None else [color_text(color) if found.coding == "colors" else str(index)]
        values.append(", ".join(given.get(name, [] if found.values and found.coding == "indices" else own)))
    rows = [(name, found.pixels[name], found.files[name]) for name in found.classes]
    rows.append(("(does not count)", found.pixels[IGNORED], found.files[IGNORED]))
    return _class_table(title, rows, values)
