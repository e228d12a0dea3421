"""The commands of ``pspnet-fast``, on typer: train, evaluate and info here, the others imported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pspnet_fast import __version__
from pspnet_fast.data import DatasetInfo
from pspnet_fast.files import check_writable, replacing

from . import data_commands, init_command
from .class_weights import require_labels
from .config import TrainConfig
from .config_io import load_config, ready_configs
from .console import (
    DEBUG,
    Amp,
    Backend,
    Checkpoint,
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
    framed,
    inference_changes,
    is_file_of_data,
    load_for_inference,
    say,
    warn,
)
from .datasets import open_split, read_split
from .distributed import join_world
from .errors import ConfigError
from .evaluate import evaluate as evaluate_model
from .export import export
from .models import check_classes, load_trained
from .run_folder import no_run_named
from .train import chosen_backend
from .train import train as train_model

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"pspnet-fast {__version__} (torch {torch.__version__})")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train and use PSPNet."""
    if debug:
        os.environ[DEBUG] = "1"


# The configuration that --data alone stands for.
DEFAULT_CONFIGS = {
    "camvid": "camvid_r18",
    "scenes": "camvid_r18",
    "cityscapes": "cityscapes_r50",
    "ade20k": "ade20k_r50",
    "voc": "voc_r50",
}


def _options() -> str:
    """The options of a configuration with their defaults, a section a paragraph."""
    tree = TrainConfig().to_dict()
    sections = (
        ", ".join(f"{section}.{key}={json.dumps(tree[section][key])}" for key in tree[section]) for section in tree
    )
    return "Options and their defaults:\n\n" + "\n\n".join(sections)


@app.command(epilog=_options())
@framed
def train(
    config: Annotated[
        str | None, typer.Argument(help=f"A YAML file, or one of {', '.join(ready_configs())}.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    root: Root = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the run; runs/CONFIG-DATE by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --folder.")] = False,
    device: Device = None,
    backend: Backend = None,
    amp: Amp = None,
) -> None:
    """Train; under torchrun, on several devices: torchrun --nproc-per-node 4 -m pspnet_fast.cli train …"""
    changes = list(overrides or [])
    if config is not None and "=" in config:  # an override where CONFIG was left out
        changes = [config, *changes]
        config = None
    changes += data_changes(data) + as_overrides({"data.root": root, "run.folder": folder})
    changes += as_overrides({"run.device": device, "run.backend": backend, "run.amp": amp})
    source = _config_source(config, data, folder, resume)
    result = train_model(load_config(source, changes), resume=resume, name=Path(source).stem)
    if result.metrics is not None and _is_main():
        Console().print(result.metrics.table(f"{result.folder}: step {result.step}, {result.minutes:.1f} minutes"))
        say(f"{result.images_per_second:.1f} images/s, peak memory {result.peak_memory / 2**20:.0f} MB")
        say(f"best.pt (mIoU {100 * result.best_miou:.2f}) and last.pt are in {result.folder}")
    elif _is_main():
        say(f"last.pt is in {result.folder}")


@app.command()
@framed
def evaluate(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    root: Root = None,
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="Images to evaluate; the validation split by default.")] = None,
    scales: Scales = None,
    flip: Flip = None,
    crop: Crop = None,
    config: Foreign = None,
    device: Device = None,
    backend: Backend = None,
    amp: Amp = None,
    save: Annotated[Path | None, typer.Option("--json", help="Write metrics and confusion matrix here.")] = None,
) -> None:
    """Print mIoU, mAcc, pixel accuracy and the table of classes."""
    changes = list(overrides or []) + data_changes(data) + as_overrides({"data.root": root, "data.val_split": split})
    changes += inference_changes(scales, flip, crop, device, backend, amp)
    if save is not None:
        check_writable(save)
    trained, options = load_for_inference(checkpoint, config, changes)
    if split is not None and options.data.name == "list" and not options.data.val_fraction:
        raise ConfigError("--split has no effect with data.name=list: name the list file, with data.val_list=FILE")
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        dataset = open_split(options.data, options.data.val_split, held_out=read_split(checkpoint.parent))
        if trained is None:
            trained = load_trained(checkpoint, config=options, info=dataset.info)
        check_classes(checkpoint, trained.info, dataset.info)
        if world.is_main:
            _warn_of_other_classes(checkpoint, trained.info, dataset.info)
        split = str(options.data.val_split)
        require_labels(dataset.info, split, len(dataset), sum(sample.label is not None for sample in dataset.samples))
        model = trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        metrics = evaluate_model(
            model, dataset, options.eval, amp=options.run.amp, workers=options.data.workers, world=world
        )
        require_labels(dataset.info, split, len(dataset), int(metrics.confusion.sum()))
        if world.is_main:
            Console().print(metrics.table(f"{dataset.info.name} {split}, {len(dataset)} images"))
            if save is not None:
                with replacing(save) as file:
                    file.write(json.dumps(metrics.to_dict(), indent=1) + "\n")


app.command()(framed(init_command.init))
app.command()(framed(data_commands.predict))
app.command()(framed(export))
app.command()(framed(data_commands.check))
app.command()(framed(data_commands.scenes))


@app.command()
@framed
def info() -> None:
    """Print version, back ends and what each operator will run on."""
    from pspnet_fast.report import report

    typer.echo(report())


def _config_source(config: str | None, data: str | None, folder: Path | None, resume: bool) -> str:
    if config is not None:
        return config
    if resume and folder is not None:
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"{folder} holds no run (no config.yaml): name the folder of the run to resume")
        return str(folder / "config.yaml")
    if resume:
        raise no_run_named()
    if data in DEFAULT_CONFIGS:
        return DEFAULT_CONFIGS[data]
    if data is not None and is_file_of_data(data):
        return data
    raise ConfigError(
        f"name a configuration ({', '.join(ready_configs())}, or a YAML file), "
        f"or one of --data {', '.join(DEFAULT_CONFIGS)}" + (f"; --data {data} alone stands for none" if data else "")
    )


def _warn_of_other_classes(checkpoint: Path, trained: DatasetInfo, data: DatasetInfo) -> None:
    pairs = zip(trained.classes, data.classes, strict=True)
    others = [f"{i} is {old!r} there, {new!r} here" for i, (old, new) in enumerate(pairs) if old != new]
    if others:
        more = f", and {len(others) - 3} more" if len(others) > 3 else ""
        warn(f"the classes of {checkpoint} ({trained.name}) have other names: {'; '.join(others[:3])}{more}")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
