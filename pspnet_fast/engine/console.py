"""What the commands of ``pspnet-fast`` share: options, framed errors, and overrides."""

from __future__ import annotations

import functools
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pspnet_fast.backend import BackendError
from pspnet_fast.data import DATASETS, DatasetError

from .config_io import load_config
from .errors import UserError, is_out_of_memory, loader_errors, worker_message

DEBUG = "PSPNET_FAST_DEBUG"  # the environment variable that the option --debug sets
P = ParamSpec("P")
R = TypeVar("R")

Root = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Data = Annotated[str | None, typer.Option(help=f"Data set: {', '.join(DATASETS)}, or a YAML file that describes it.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[str | None, typer.Option(help="Operators: auto, reference (plain PyTorch), cpu, triton or cuda.")]
Amp = Annotated[str | None, typer.Option(help="Mixed precision: none, bf16 or fp16.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Options, as in optim.lr=0.02 eval.stride=0.5.", show_default=False)
]


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


def listed(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of the items, and how many there are besides."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


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


_LESS_MEMORY = (
    "In training lower optim.batch_size or data.crop, or raise optim.accumulate; in evaluate and predict set --crop or "
    "lower eval.batch_size."
)


def is_file_of_data(data: str) -> bool:
    """Whether ``--data`` is the path of a configuration, of which the section data is meant."""
    return data.lower().endswith((".yaml", ".yml"))


def data_changes(data: str | None) -> list[str]:
    """Overrides from ``--data``: the name of a data set, or all that a file says of its data."""
    if data is None or not is_file_of_data(data):
        return as_overrides({"data.name": data})
    described = load_config(data, ["run.max_steps=1"]).data  # a configuration needs a length; nothing is trained
    tree = described.model_dump(mode="json", exclude_unset=True)
    return [f"data.{key}={as_json(value)}" for key, value in tree.items()]


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """``key=value`` for each value that is given; JSON keeps a path such as 007 text when it is read as YAML."""
    return [f"{key}={as_json(value)}" for key, value in values.items() if value is not None]


def as_json(value: object) -> str:
    """JSON, which is YAML on one line."""
    return json.dumps(value, ensure_ascii=False, default=str)
