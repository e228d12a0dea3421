"""The commands of ``pspnet-fast``, on typer: train and info here, the others imported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pspnet_fast import __version__

from . import data_commands, network_commands
from .checkpoint import no_run_named
from .config import TrainConfig
from .config_io import load_config, ready_configs
from .console import (
    DEBUG,
    Amp,
    Backend,
    Data,
    Device,
    Overrides,
    Root,
    as_overrides,
    data_changes,
    framed,
    is_file_of_data,
    say,
)
from .errors import ConfigError
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
    is_main = os.environ.get("RANK", "0") == "0"
    if result.metrics is not None and is_main:
        Console().print(result.metrics.table(f"{result.folder}: step {result.step}, {result.minutes:.1f} minutes"))
        say(f"{result.images_per_second:.1f} images/s, peak memory {result.peak_memory / 2**20:.0f} MB")
        say(f"best.pt (mIoU {100 * result.best_miou:.2f}) and last.pt are in {result.folder}")
    elif is_main:
        say(f"last.pt is in {result.folder}")


for _command in (
    network_commands.evaluate,
    data_commands.init,
    network_commands.predict,
    network_commands.export,
    data_commands.check,
    data_commands.scenes,
):
    app.command()(framed(_command))


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
