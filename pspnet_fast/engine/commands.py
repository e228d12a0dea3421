"""The commands of ``pspnet-fast``, on typer. What a user can mend becomes one framed message and exit code 2."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pspnet_fast.backend import BackendError
from pspnet_fast.data import DATASETS, DatasetError, write_scenes

from .config import TrainConfig
from .config_io import config_from_dict, load_config, ready_configs
from .distributed import join_world, pick_device
from .errors import ConfigError, UserError
from .evaluate import evaluate as evaluate_model
from .inference import autocast
from .models import TrainedModel, check_classes, load_trained
from .predict import predict_paths
from .sampling import worker_message
from .train import chosen_backend, open_split
from .train import train as train_model

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train and use PSPNet."
)

# The configuration that --data alone stands for.
DEFAULT_CONFIGS = {
    "camvid": "camvid_r18",
    "scenes": "camvid_r18",
    "cityscapes": "cityscapes_r50",
    "ade20k": "ade20k_r50",
    "voc": "voc_r50",
}

Root = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Data = Annotated[str | None, typer.Option(help=f"Data set: {', '.join(DATASETS)}.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[str | None, typer.Option(help="Operators: auto, reference (plain PyTorch), cpu, triton or cuda.")]
Amp = Annotated[str | None, typer.Option(help="Mixed precision: none, bf16 or fp16.")]
Scales = Annotated[str | None, typer.Option(help="Average over these scales, as in 0.5,1,1.5.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirrored image.")]
Crop = Annotated[int | None, typer.Option(help="Predict through a sliding window of this size; 0: the whole image.")]
Checkpoint = Annotated[
    Path, typer.Argument(help="A run's best.pt or last.pt, or semseg's (with --config).", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Options, as in optim.lr=0.02 eval.stride=0.5.", show_default=False)
]
Foreign = Annotated[str | None, typer.Option(help="For a checkpoint that does not hold its configuration.")]


def framed(command: Callable[P, R]) -> Callable[P, R]:
    """Show the errors that a user can mend as one framed message, without a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (UserError, DatasetError, BackendError) as error:
            fail(worker_message(error), error)
        except ImportError as error:
            fail(f"{error}. The commands need the extra: pip install 'pspnet-fast[train]'", error)
        except torch.OutOfMemoryError as error:
            remedy = (
                "Lower optim.batch_size or raise optim.accumulate; in evaluation lower eval.batch_size or set --crop."
            )
            fail(f"{error}\n{remedy}", error)

    return run


def fail(message: str, cause: BaseException) -> NoReturn:
    """Print ``message`` in a frame on standard error and exit with code 2."""
    Console(stderr=True).print(Panel(Text(message), title="pspnet-fast: error", border_style="red"))
    raise typer.Exit(2) from cause


@app.command()
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
    changes += _changes({"data.name": data, "data.root": root, "run.folder": folder})
    changes += _changes({"run.device": device, "run.backend": backend, "run.amp": amp})
    source = _config_source(config, data, folder, resume)
    result = train_model(load_config(source, changes), resume=resume, name=Path(source).stem)
    if result.metrics is not None and _is_main():
        console = Console()
        console.print(result.metrics.table(f"{result.folder}: step {result.step}, {result.minutes:.1f} minutes"))
        console.print(f"{result.images_per_second:.1f} images/s, peak memory {result.peak_memory / 2**20:.0f} MB")
        console.print(f"best.pt (mIoU {100 * result.best_miou:.2f}) and last.pt are in {result.folder}", soft_wrap=True)


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
    changes = list(overrides or []) + _changes({"data.name": data, "data.root": root, "data.val_split": split})
    changes += _inference_changes(scales, flip, crop, device, backend, amp)
    trained, options = _load(checkpoint, config, changes)
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        dataset = open_split(options.data, options.data.val_split)
        if trained is None:
            trained = load_trained(checkpoint, config=options, info=dataset.info)
        check_classes(checkpoint, trained.info, dataset.info)
        model = trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        metrics = evaluate_model(
            model, dataset, options.eval, amp=options.run.amp, workers=options.data.workers, world=world
        )
        if world.is_main:
            Console().print(metrics.table(f"{dataset.info.name} {options.data.val_split}, {len(dataset)} images"))
            if save is not None:
                save.write_text(json.dumps(metrics.to_dict(), indent=1) + "\n", encoding="utf-8")


@app.command()
@framed
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
    trained, options = _load(checkpoint, config, _inference_changes(scales, flip, crop, device, backend, amp))
    if trained is None:
        info = DATASETS[options.data.name].info if options.data.name in DATASETS else None
        trained = load_trained(checkpoint, config=options, info=info)
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        written = predict_paths(trained, images, out, options.eval, amp=options.run.amp, progress=True)
    Console().print(f"{len(written)} pictures: {out}/labels, {out}/colors, {out}/overlay", soft_wrap=True)


@app.command()
@framed
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
    if data in DEFAULT_CONFIGS:
        return DEFAULT_CONFIGS[data]
    raise ConfigError(
        f"name a configuration ({', '.join(ready_configs())}, or a YAML file), "
        f"or one of --data {', '.join(DEFAULT_CONFIGS)}" + (f"; --data {data} alone stands for none" if data else "")
    )


def _load(checkpoint: Path, config: str | None, changes: list[str]) -> tuple[TrainedModel | None, TrainConfig]:
    """The checkpoint's network with its changed configuration; no network yet where ``config`` must tell which."""
    if config is not None:
        options, trained = load_config(config, changes), None
    else:
        trained = load_trained(checkpoint)
        options = config_from_dict(trained.config.to_dict(), changes)
    autocast(pick_device(options.run.device), options.run.amp)  # refuses what the device cannot do
    return trained, options


def _inference_changes(
    scales: str | None, flip: bool | None, crop: int | None, device: str | None, backend: str | None, amp: str | None
) -> list[str]:
    changes = {
        "eval.scales": None if scales is None else f"[{scales}]",
        "eval.flip": None if flip is None else str(flip).lower(),
        "eval.crop": None if crop is None else crop or "null",
        "run.device": device,
        "run.backend": backend,
        "run.amp": amp,
    }
    return _changes(changes)


def _changes(values: Mapping[str, object]) -> list[str]:
    # JSON quoting keeps a path such as "007" text when it is read as YAML.
    given = {
        key: json.dumps(str(value)) if isinstance(value, Path) else value
        for key, value in values.items()
        if value is not None
    }
    return [f"{key}={value}" for key, value in given.items()]


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
