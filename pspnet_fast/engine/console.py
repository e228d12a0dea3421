"""What the commands of ``pspnet-fast`` share: options, framed errors, and the checkpoint that they load."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pspnet_fast.backend import BackendError
from pspnet_fast.data import DATASETS, DatasetError
from pspnet_fast.files import OutputError

from .config import TrainConfig
from .config_io import config_from_dict, load_config
from .distributed import pick_device
from .errors import UserError
from .inference import autocast
from .models import TrainedModel, load_trained
from .sampling import loader_errors, worker_message

P = ParamSpec("P")
R = TypeVar("R")

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
            with loader_errors():
                return command(*args, **kwargs)
        except (UserError, DatasetError, BackendError, OutputError) as error:
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


def load_for_inference(
    checkpoint: Path, config: str | None, changes: list[str]
) -> tuple[TrainedModel | None, TrainConfig]:
    """The checkpoint's network with its changed configuration; no network yet where ``config`` must tell which."""
    if config is not None:
        options, trained = load_config(config, changes), None
    else:
        trained = load_trained(checkpoint)
        options = config_from_dict(trained.config.to_dict(), changes)
    autocast(pick_device(options.run.device), options.run.amp)  # refuses what the device cannot do
    return trained, options


def inference_changes(
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
    return as_overrides(changes)


def as_overrides(values: Mapping[str, object]) -> list[str]:
    # JSON quoting keeps a path such as "007" text when it is read as YAML.
    given = {
        key: json.dumps(str(value)) if isinstance(value, Path) else value
        for key, value in values.items()
        if value is not None
    }
    return [f"{key}={value}" for key, value in given.items()]
