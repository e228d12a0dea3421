"""What the commands of ``pspnet-fast`` share: options, framed errors, and the checkpoint that they load."""

from __future__ import annotations

import functools
import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pspnet_fast.backend import BackendError
from pspnet_fast.data import DATASETS, DatasetError

from .config import TrainConfig
from .config_io import config_from_dict, load_config, parse_override
from .distributed import pick_device
from .errors import ConfigError, UserError, is_out_of_memory
from .inference import autocast, cpu_multiplies_bfloat16
from .models import TrainedModel, load_trained
from .sampling import loader_errors, worker_message

DEBUG = "PSPNET_FAST_DEBUG"  # the environment variable that the option --debug sets
P = ParamSpec("P")
R = TypeVar("R")

Root = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Data = Annotated[str | None, typer.Option(help=f"Data set: {', '.join(DATASETS)}, or a YAML file that describes it.")]
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
    """Show an error as one framed message with exit code 2; ``pspnet-fast --debug`` prints its traceback before."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with loader_errors():
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get(DEBUG):
                traceback.print_exc()
            message = _explain(error)
            Console(stderr=True).print(Panel(Text(message), title="pspnet-fast: error", border_style="red"))
            raise typer.Exit(2) from error

    return run


def say(text: str) -> None:
    """Print a line as it is: neither wrapped nor searched for Rich's markup, which a path may resemble."""
    Console().print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    Console(stderr=True).print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


def _explain(error: Exception) -> str:
    text = worker_message(error)
    if isinstance(error, (UserError, DatasetError, BackendError)):
        return text
    if isinstance(error, ImportError):
        return f"{text}. The commands need the extra: pip install 'pspnet-fast[train]'"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None and error.strerror else ""
        return f"{place}{error.strerror or text}"
    first = next((line for line in text.splitlines() if line.strip()), "no message")
    if is_out_of_memory(error):
        return f"not enough memory: {first}\n{_LESS_MEMORY}"
    remedy = f"This should not happen. To see where, run it as: pspnet-fast --debug COMMAND ... (or with {DEBUG}=1)"
    return f"{type(error).__name__}: {first}\n{remedy}"


_OF_TRAINING = (
    *(f"data.{name}" for name in ("train_split", "train_list", "allow_absent_classes")),
    *(f"data.{name}" for name in ("crop", "scale", "rotate", "blur", "flip", "cat_max_ratio", "jitter", "transform")),
    *(f"model.{name}" for name in ("pretrained", "weights", "dropout")),
)
_LESS_MEMORY = (
    "In training lower optim.batch_size or data.crop, or raise optim.accumulate; in evaluate and predict set --crop or "
    "lower eval.batch_size."
)


def load_for_inference(
    checkpoint: Path, config: str | None, changes: list[str]
) -> tuple[TrainedModel | None, TrainConfig]:
    """The checkpoint's network with its changed configuration; no network yet where ``config`` must tell which.

    Raises:
        ConfigError: a change that neither evaluate nor predict can follow.
    """
    for key, _ in map(parse_override, changes):
        section, name = key.split(".")
        if key in _OF_TRAINING or section == "optim" or (section == "run" and name not in ("device", "backend", "amp")):
            raise ConfigError(f"{key} is an option of training and has no effect here: leave it out")
        if section == "model" and config is None:
            raise ConfigError(f"{key} cannot be changed: {checkpoint} holds its network; leave it out")
    if config is not None:
        options, trained = load_config(config, changes), None
    else:
        trained = load_trained(checkpoint)
        options = config_from_dict(trained.config.to_dict(), changes)
    device = pick_device(options.run.device)
    autocast(device, options.run.amp)  # refuses what the device cannot do
    if device.type == "cpu" and options.run.amp == "bf16" and not cpu_multiplies_bfloat16():
        problem = "this CPU has neither AMX nor AVX512-BF16, so that run.amp=bf16 is slower than none"
        if any(parse_override(change)[0] == "run.amp" for change in changes):
            raise ConfigError(f"{problem}; leave --amp out, or say --amp none")
        warn(f"{problem}, which --amp none requests")
    return trained, options


def inference_changes(
    scales: str | None, flip: bool | None, crop: int | None, device: str | None, backend: str | None, amp: str | None
) -> list[str]:
    """Overrides from the options that evaluate and predict share."""
    options = {
        "eval.scales": None if scales is None else scales.split(","),
        "eval.flip": flip,
        "eval.crop": crop or None,
    }
    changes = as_overrides({**options, "run.device": device, "run.backend": backend, "run.amp": amp})
    return [*changes, "eval.crop=null"] if crop == 0 else changes


def is_file_of_data(data: str) -> bool:
    """Whether ``--data`` is the path of a configuration, of which the section data is meant."""
    return data.lower().endswith((".yaml", ".yml"))


def data_changes(data: str | None) -> list[str]:
    """Overrides from ``--data``: the name of a data set, or all that a file says of its data."""
    if data is None or not is_file_of_data(data):
        return as_overrides({"data.name": data})
    described = load_config(data, ["run.max_steps=1"]).data  # a configuration needs a length; nothing is trained
    tree = described.model_dump(mode="json", exclude_unset=True)
    return [f"data.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in tree.items()]


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """``key=value`` for each value that is given; JSON keeps a path such as 007 text when it is read as YAML."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"
        for key, value in values.items()
        if value is not None
    ]
