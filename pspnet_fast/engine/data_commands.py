"""The commands that read pictures or write data sets; :mod:`pspnet_fast.engine.commands` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pspnet_fast.data import DATASETS, DatasetError, write_scenes

from .console import Amp, Backend, Crop, Device, Flip, Foreign, Scales, inference_changes, load_for_inference
from .distributed import join_world
from .errors import ConfigError
from .models import load_trained
from .predict import predict_paths
from .train import chosen_backend


def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", show_default=False)],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="A run's best.pt.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Gets labels/, colors/ and overlay/.")] = Path("predictions"),
    scales: Scales = None,
    flip: Flip = None,
    crop: Crop = None,
    config: Foreign = None,
    device: Device = None,
    backend: Backend = None,
    amp: Amp = None,
) -> None:
    """Write a label map, a colour map and an overlay of each picture."""
    trained, options = load_for_inference(
        checkpoint, config, inference_changes(scales, flip, crop, device, backend, amp)
    )
    if trained is None:
        info = DATASETS[options.data.name].info if options.data.name in DATASETS else None
        trained = load_trained(checkpoint, config=options, info=info)
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        written = predict_paths(trained, images, out, options.eval, amp=options.run.amp, progress=True)
    Console().print(f"{len(written)} pictures: {out}/labels, {out}/colors, {out}/overlay", soft_wrap=True)


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
    Console().print(
        f"{train} + {val} scenes in {root}; now: pspnet-fast train --data scenes --root {root}", soft_wrap=True
    )
