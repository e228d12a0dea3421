"""The commands that read pictures or write data sets; :mod:`pspnet_fast.engine.commands` registers them."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pspnet_fast.data import DatasetError, SegmentationDataset, write_scenes
from pspnet_fast.data.check import Report, check_dataset, list_problems
from pspnet_fast.data.classes import IGNORE

from .config_io import config_from_dict, load_config
from .console import (
    Amp,
    Backend,
    Crop,
    Data,
    Device,
    Flip,
    Foreign,
    Overrides,
    Root,
    Scales,
    as_overrides,
    data_changes,
    inference_changes,
    load_for_inference,
    say,
)
from .datasets import dataset_info, open_split, read_options
from .distributed import join_world
from .errors import ConfigError
from .models import load_trained
from .predict import IncompleteError, predict_paths
from .train import chosen_backend
from .watch import watched


def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", show_default=False)],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="A run's best.pt.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Gets labels/, colors/ and overlay/.")] = Path("predictions"),
    scales: Scales = None,
    flip: Flip = None,
    crop: Crop = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in --out that predict did not write; never an input.")
    ] = False,
    with_legend: Annotated[
        bool, typer.Option("--legend", help="Append a strip to each overlay that names the classes in it.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write probabilities/NAME.npz: float16 [classes, H, W].")
    ] = False,
    ids: Annotated[
        bool, typer.Option("--ids", help="Also write ids/NAME.png: the data set's own label values, for its server.")
    ] = False,
    value_range: Annotated[
        str | None, typer.Option(help="Black and white of pictures with more than 8 bits a sample, as in 0,1.")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture to read.", min=1)] = None,
    config: Foreign = None,
    device: Device = None,
    backend: Backend = None,
    amp: Amp = None,
) -> None:
    """Write a label map, a colour map and an overlay of each picture."""
    changes = inference_changes(scales, flip, crop, device, backend, amp)
    changes += [] if value_range is None else [f"data.value_range=[{value_range}]"]
    changes += [] if max_pixels is None else [f"data.max_pixels={max_pixels}"]
    trained, options = load_for_inference(checkpoint, config, changes)
    if trained is None:
        trained = load_trained(checkpoint, config=options, info=dataset_info(options.data))
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            written = predict_paths(
                trained,
                images,
                out,
                options.eval,
                amp=options.run.amp,
                progress=True,
                overwrite=overwrite,
                reading=read_options(options.data),
                with_legend=with_legend,
                probabilities=probabilities,
                ids=ids,
                world=world,
            )
        except IncompleteError:
            if world.is_main:
                raise
            raise typer.Exit(2) from None  # the main process reports for all
    if world.is_main:
        say(f"{len(written)} pictures: {out}/labels, {out}/colors, {out}/overlay")


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
        Console().print(_class_table(dataset, report, f"{dataset.info.name} {name}, {len(dataset)} images"))
        sizes = Counter({f"{width}x{height}": n for (width, height), n in report.sizes.items()})
        for what, counts in (("sizes", sizes), ("files", report.modes)):
            found = [
                f"{key if isinstance(key, str) else '{}x{}'.format(*key)} ({n})" for key, n in counts.most_common()
            ]
            more = f", and {len(found) - 8} more" if len(found) > 8 else ""
            say(f"{what}: {', '.join(found[:8])}{more}")
        if report.unknown:
            listed = ", ".join(f"{value} ({pixels} pixels)" for value, pixels in report.unknown.most_common(20))
            more = f", and {len(report.unknown) - 20} more" if len(report.unknown) > 20 else ""
            say(f"values that are no class: {listed}{more}")
        problems += report.problems
        count += len(dataset)
    if problems:
        raise DatasetError(list_problems(problems, f"of {count} samples cannot be used", limit=50))


def _class_table(dataset: SegmentationDataset, report: Report, title: str) -> Table:
    table = Table(title=Text(title))
    for column in ("class", "pixels", "share", "labels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    total = max(1, int(report.pixels.sum()))
    names = [*enumerate(dataset.info.classes), (IGNORE, "left out (255)")]
    for index, name in names:
        pixels = int(report.pixels[index])
        style = "yellow" if pixels == 0 and index != IGNORE else None
        table.add_row(
            Text(name), f"{pixels}", f"{100 * pixels / total:.2f} %", f"{int(report.labels[index])}", style=style
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
