"""The records of a run: CSV tables, TensorBoard, progress, and the versions it ran with."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

import pspnet_fast
from pspnet_fast.backend import active_backend
from pspnet_fast.files import output_errors, replacing
from pspnet_fast.machine import describe_machine, git_commit

from .config import TrainConfig
from .errors import ConfigError
from .loggers import LOGGERS
from .progress import LINE_SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


class CsvTable:
    """A CSV file with a column ``step``, appended to row by row; the header is the first row's keys.

    Args:
        keep: the step of the last row to keep; later rows of a resumed run will come again and are dropped.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.columns = path, []  # type: Path, list[str]
        rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                rows = [row for row in csv.DictReader(file) if _step(row) <= keep]
        with replacing(path) as file:
            self._write(file, rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are in the file when this returns."""
        with output_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            self._write(file, rows)

    def _write(self, file: IO[str], rows: Sequence[Row]) -> None:
        if not rows:
            return
        writer = csv.DictWriter(file, self.columns or list(rows[0]))
        if not self.columns:
            writer.writeheader()
            self.columns = list(rows[0])
        writer.writerows([{key: _short(value) for key, value in row.items()} for row in rows])


class RunLog:
    """What rank 0 writes; on other ranks every method does nothing.

    Args:
        folder: gets losses.csv (a row a step), metrics.csv (a row a validation), versions.yaml and tensorboard/.
        step: the step to continue from, 0 for a new run.
        validated: the step of the last validation to keep.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, *, enabled: bool, step: int, validated: int, device: torch.device
    ) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self.losses = CsvTable(folder / "losses.csv", step)
        self.metrics = CsvTable(folder / "metrics.csv", validated)
        name = config.run.logger
        try:
            self.logger = LOGGERS[name](folder, config.to_dict(), step)
        except ImportError as error:
            raise ConfigError(f"run.logger = {name} needs the library: pip install {name} ({error})") from error
        append_versions(folder / "versions.yaml", device, step)
        form, terminal = "{desc} {percentage:3.0f}%|{bar}| {elapsed} {postfix}", sys.stderr.isatty()
        self.bar = tqdm(total=1.0, desc="train", bar_format=form, disable=not terminal, mininterval=0.2, miniters=0)
        self.status, self.line_time, self.closing = "starting", time.monotonic(), threading.Event()
        if not terminal:
            threading.Thread(target=self._repeat_status, daemon=True).start()

    def say(self, text: str) -> None:
        if self.enabled:
            self.line_time = time.monotonic()
            tqdm.write(text, file=sys.stderr)

    def log_losses(self, rows: Sequence[Row]) -> None:
        if not self.enabled:
            return
        self.losses.add(rows)
        names = ("loss", "main_loss", "aux_loss", "pixel_accuracy", "lr")
        for row in rows:
            self.logger.scalars({f"train/{name}": row[name] for name in names}, row["step"])

    def log_metrics(self, row: Row) -> None:
        if not self.enabled:
            return
        self.metrics.add([row])
        tags = {name: f"iou/{name[4:]}" if name.startswith("iou_") else f"val/{name}" for name in row}
        defined = {tags[name]: value for name, value in row.items() if name != "step" and value == value}
        self.logger.scalars(defined, row["step"])

    def show_panels(self, panels: Iterable[torch.Tensor], step: int) -> None:
        """Show uint8 [H, W, 3] each."""
        for i, panel in enumerate(panels):
            self.logger.picture(f"val/{i}", panel, step)

    def progress(self, fraction: float, status: str) -> None:
        """Move the bar, or print a line now and then where standard error is no terminal."""
        if not self.enabled:
            return
        self.status = f"train {100 * fraction:5.1f}%  {status}"
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update(fraction - self.bar.n)

    def close(self) -> None:
        if self.enabled:
            self.closing.set()
            self.bar.close()
            try:
                self.logger.close()
            except OSError as error:  # must not hide the error that ended the run
                self.say(f"the last points are missing ({error})")

    def _repeat_status(self) -> None:
        """A thread's work: it shows in long steps and validations, and before the first batch, that the run goes on."""
        while not self.closing.wait(0.5):
            if time.monotonic() - self.line_time >= LINE_SECONDS:
                self.say(self.status)


def append_versions(path: Path, device: torch.device, step: int) -> None:
    """What the numbers of a run depend on besides its configuration: an entry of a list for each of its starts."""
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    entry = {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "from_step": step,
        "command": " ".join(sys.argv),
        "pspnet_fast": pspnet_fast.__version__,
        "git_commit": git_commit(),
        "backend": active_backend(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        **describe_machine(device),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    with replacing(path) as file:
        file.write(before + yaml.safe_dump([entry], sort_keys=False))


def draw_losses(table: Path, picture: Path) -> None:
    """Plot ``losses.csv`` into a picture file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    plot_table(figure.subplots(), table)
    with replacing(picture, "wb") as file:
        figure.savefig(file, dpi=120, format="png")


def plot_table(axes: Axes, table: Path) -> None:
    """Each step's total and auxiliary loss of a ``losses.csv``, pale, and their running means."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    for color, (name, label) in zip(("C0", "C1"), (("loss", "total"), ("aux_loss", "auxiliary")), strict=True):
        values = [float(row[name]) for row in rows]
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        sums, ends = np.cumsum([0.0, *values]), np.arange(1, len(values) + 1)
        starts = np.maximum(ends - max(1, len(values) // 50), 0)
        axes.plot(steps, (sums[ends] - sums[starts]) / (ends - starts), color=color, label=label)
    axes.set(xlabel="step", ylabel="cross-entropy", xlim=(0, max(steps, default=1)))
    axes.grid(alpha=0.3)
    axes.legend()


def _step(row: Mapping[str, str | None]) -> float:
    """The step of a row, infinite for a last line that was cut short."""
    complete = all(value is not None for value in row.values()) and (row.get("step") or "").isdigit()
    return int(row["step"] or 0) if complete else float("inf")


def _short(value: Any) -> Any:
    return f"{value:.8g}" if isinstance(value, float) else value
