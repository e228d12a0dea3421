"""The command ``pspnet-fast init``: a configuration for a folder of one's own pictures."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pspnet_fast.data.classes import DatasetError
from pspnet_fast.data.files import expand
from pspnet_fast.data.guess import ClassGuess, find_classes
from pspnet_fast.data.labels import color_text
from pspnet_fast.data.own import IGNORED
from pspnet_fast.data.pairing import Pairing, find_pairs
from pspnet_fast.data.reading import read_header
from pspnet_fast.files import replacing

from .config_io import load_config
from .console import say, warn
from .errors import ConfigError
from .watch import watched

_FEWEST = 2
_VAL_FRACTION, _FEWEST_SPLIT = 0.2, 3  # of fewer pictures none is held out
_STEPS = 4000


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
    Console().print(_table(classes, f"{folder}: {len(pairing.pairs)} pictures"))
    if pairing.unpaired:
        first = ", ".join(str(path.relative_to(folder)) for path in pairing.unpaired[:3])
        more = " …" if len(pairing.unpaired) > 3 else ""
        warn(f"{len(pairing.unpaired)} files have no partner ({first}{more}): add it, or move them elsewhere")
    if strays := classes.strays:
        warn(
            f"hardly any pixels are of {', '.join(strays[:8])}{' …' if len(strays) > 8 else ''}: if these are slips, "
            f"call them {IGNORED} in the values of {out.name}, and take them off its classes"
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
        f"  root: {_json(str(root))}",
        f"  image_folder: {_json(image_folder)}    # below the root; {{split}} stands for the two names",
        f"  label_folder: {_json(label_folder)}",
        f"  image_suffixes: {_json(list(pairing.image_suffixes))}    # what an image has where its label has the next",
        f"  label_suffix: {_json(pairing.label_suffix)}",
        f"  train_split: {_json(train)}",
        f"  val_split: {_json(val)}    # null: no validation",
        f"  val_fraction: {held_out}    # held out for validation where the folders have no splits",
        "  split_seed: 0",
        f"  labels: {found.coding}    # indices: a value a pixel; colors: the colour of the class",
        "  classes:    # in the order of their indices in predictions; colours as R, G, B",
        *(f"    {_json(name)}: {_json(list(color))}" for name, color in found.classes.items()),
    ]
    if found.values:
        lines.append("  values:    # what label files hold: the class, or ignore for pixels that do not count")
        lines += [f"    {_json(value)}: {_json(name)}" for value, name in found.values.items()]
    lines += [
        f"  ignore_value: {_json(found.ignore_value)}    # does not count either (indices)",
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


def _json(value: object) -> str:
    """JSON, which is YAML on one line."""
    return json.dumps(value, ensure_ascii=False)


def _table(found: ClassGuess, title: str) -> Table:
    table = Table(title=Text(title))
    for column in ("class", "in the files", "pixels", "share", "labels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    total = max(1, sum(found.pixels.values()))
    names: dict[str, list[str]] = {}
    for value, name in found.values.items():
        names.setdefault(name, []).append(str(value))
    if found.ignore_value is not None and found.coding == "indices":
        names.setdefault(IGNORED, []).append(str(found.ignore_value))
    for index, name in enumerate([*found.classes, IGNORED]):
        color = found.classes.get(name)
        own = [] if color is None else [color_text(color) if found.coding == "colors" else str(index)]
        pixels = found.pixels[name]
        table.add_row(
            Text(name if name != IGNORED else "(does not count)"),
            ", ".join(names.get(name, [] if found.values and found.coding == "indices" else own)),
            str(pixels),
            f"{100 * pixels / total:.2f} %",
            str(found.files[name]),
            style="yellow" if pixels == 0 and name != IGNORED else None,
        )
    return table
