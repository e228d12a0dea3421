"""The records of a run: CSV tables, TensorBoard, progress, and the versions it ran with."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import pspnet_fast
from pspnet_fast.backend import active_backend
from pspnet_fast.machine import describe_machine, git_commit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
LINE_SECONDS = 30.0  # between two progress lines where there is no terminal for a bar


class CsvTable:
    """A CSV file with a column ``step``, appended to row by row; the header is the first row's keys.

    Args:
        keep: on resuming, the step of the checkpoint: later rows will come again and are dropped. ``None`` starts anew.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path, self.columns = path, []  # type: Path, list[str]
        rows: list[dict[str, str]] = []
        if keep is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if _step(row) <= keep]
        part = path.with_name(f".{path.name}.part")
        part.write_text("", encoding="utf-8")
        os.replace(part, path)
        self.add(rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are in the file when this returns."""
        if not rows:
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns or list(rows[0]))
            if not self.columns:
                writer.writeheader()
                self.columns = list(rows[0])
            writer.writerows([{key: _short(value) for key, value in row.items()} for row in rows])


class RunLog:
    """What rank 0 writes; on other ranks every method does nothing.

    Args:
        folder: gets losses.csv (a row a step), metrics.csv (a row a validation), versions.yaml and tensorboard/.
        step: the step to go on from, 0 for a new run.
    """

    def __init__(self, folder: Path, *, enabled: bool, step: int, device: torch.device) -> None:
        self.enabled = enabled
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        keep = step if step else None
        self.losses = CsvTable(folder / "losses.csv", keep)
        self.metrics = CsvTable(folder / "metrics.csv", keep)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        with (folder / "versions.yaml").open(
            "a", encoding="utf-8"
        ) as file:  # a list: one entry each time the run was started
            yaml.safe_dump([versions(device, step)], file, sort_keys=False)
        self.bar = tqdm(total=1.0, desc="train", bar_format=_BAR, disable=not sys.stderr.isatty(), smoothing=0.1)
        self.line_time = time.monotonic()

    def say(self, text: str) -> None:
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def log_losses(self, rows: Sequence[Row]) -> None:
        if not self.enabled:
            return
        self.losses.add(rows)
        for row in rows:
            for name in ("loss", "main_loss", "aux_loss", "pixel_accuracy", "lr"):
                self.board.add_scalar(f"train/{name}", row[name], row["step"])

    def log_metrics(self, row: Row) -> None:
        if not self.enabled:
            return
        self.metrics.add([row])
        for name, value in row.items():
            if name != "step" and value == value:  # no point for an undefined value
                tag = f"iou/{name.removeprefix('iou_')}" if name.startswith("iou_") else f"val/{name}"
                self.board.add_scalar(tag, value, row["step"])

    def picture(self, name: str, panel: torch.Tensor, step: int) -> None:
        """Show uint8 [H, W, 3]."""
        if self.enabled:
            self.board.add_image(name, panel.numpy(), step, dataformats="HWC")

    def progress(self, fraction: float, step: int, loss: float, rate: float, left: float | None) -> None:
        """Move the bar, or print a line now and then where standard error is no terminal; ``left`` in seconds."""
        if not self.enabled:
            return
        remaining = "?" if left is None else str(datetime.timedelta(seconds=round(left)))
        status = f"step {step}, loss {loss:.4f}, {rate:.1f} images/s, {remaining} left"
        if not self.bar.disable:
            self.bar.n = min(fraction, 1.0)
            self.bar.set_postfix_str(status)
        elif time.monotonic() - self.line_time >= LINE_SECONDS:
            self.line_time = time.monotonic()
            self.say(f"train {100 * fraction:5.1f}%  {status}")

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            self.board.close()


def versions(device: torch.device, step: int) -> dict[str, Any]:
    """What the numbers of a run depend on besides its configuration."""
    return {
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


def draw_losses(table: Path, picture: Path) -> None:
    """Plot ``losses.csv`` into a picture file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    plot_table(axes, table)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def plot_table(axes: Axes, table: Path) -> None:
    """Each step's total and auxiliary loss of a ``losses.csv``, pale, and their running means."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    for color, (name, label) in zip(("C0", "C1"), (("loss", "total"), ("aux_loss", "auxiliary")), strict=True):
        values = [float(row[name]) for row in rows]
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _running_mean(values, max(1, len(values) // 50)), color=color, label=label)
    axes.set(xlabel="step", ylabel="cross-entropy", xlim=(0, max(steps, default=1)))
    axes.grid(alpha=0.3)
    axes.legend()


_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed} {postfix}"


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        means.append(sum(window) / len(window))
    return means


def _step(row: Mapping[str, str | None]) -> float:
    """The step of a row, infinite for a last line that was cut short."""
    complete = all(value is not None for value in row.values()) and (row["step"] or "").isdigit()
    return int(row["step"] or 0) if complete else float("inf")


def _short(value: Any) -> Any:
    return f"{value:.8g}" if isinstance(value, float) else value
