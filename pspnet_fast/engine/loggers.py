"""Where a run shows its curves: TensorBoard, Weights & Biases, or MLflow, each by its own interface."""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pspnet_fast.files import output_errors


class Logger:
    """What a run tells a logger; this one leaves it at the tables.

    The step never decreases, but for a run that resumes from an earlier checkpoint.

    Args:
        folder: of the run; its name is the run's.
        config: recorded with the run.
        step: from which a resumed run continues.

    Raises:
        ImportError: its library is not installed.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        pass

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by their names."""

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        """``picture`` is uint8 [H, W, 3]."""

    def close(self) -> None:
        """The run has ended."""


class TensorBoard(Logger):
    """In the folder ``tensorboard`` of the run."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / "tensorboard"
        self.thread_hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        with output_errors(self.folder):
            self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with output_errors(self.folder):  # TensorBoard's thread hands its errors over with the next call
            for tag, value in values.items():
                self.board.add_scalar(tag, value, step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        with output_errors(self.folder):
            self.board.add_image(tag, picture.numpy(), step, dataformats="HWC")

    def close(self) -> None:
        try:
            with output_errors(self.folder):
                self.board.close()
        finally:
            threading.excepthook = self.thread_hook

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """No traceback for what TensorBoard's thread cannot write: its next call raises the error again."""
        if not (type(error.thread).__module__.startswith("tensorboard.") and isinstance(error.exc_value, OSError)):
            self.thread_hook(error)


class Wandb(Logger):
    """A run of Weights & Biases; a resumed one continues it. The project is WANDB_PROJECT, or pspnet_fast."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self.wandb: Any = importlib.import_module("wandb")
        note = folder / "wandb.txt"
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pspnet_fast"),
            name=folder.resolve().name,
            id=_noted(note, step),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        _note(note, self.run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        self.run.log({tag: self.wandb.Image(picture.numpy())}, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow(Logger):
    """A run of MLflow at MLFLOW_TRACKING_URI; a resumed one continues it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self.mlflow: Any = importlib.import_module("mlflow")
        note = folder / "mlflow.txt"
        before = _noted(note, step)
        self.run = self.mlflow.start_run(run_id=before, run_name=folder.resolve().name)
        _note(note, self.run.info.run_id)
        if before is None:  # a run's parameters cannot be changed
            flat = {f"{section}.{key}": value for section, options in config.items() for key, value in options.items()}
            self.mlflow.log_params(flat)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        # The characters that it takes in a name; classes may be called otherwise.
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        self.mlflow.log_metrics(named, step=step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        self.mlflow.log_image(picture.numpy(), key=tag.replace("/", "-"), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


LOGGERS = {"none": Logger, "tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
"""By the value of ``run.logger``."""


def _noted(note: Path, step: int) -> str | None:
    """The run that a resumed one continues, as the run's folder says."""
    return note.read_text(encoding="utf-8").strip() if step and note.is_file() else None


def _note(note: Path, run: str) -> None:
    with output_errors(note):
        note.write_text(f"{run}\n", encoding="utf-8")
