"""The demo: draw scenes, compare the first steps on stock and fused operators, train, evaluate, predict, picture."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import matplotlib
import torch
import typer

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch
from rich.console import Console
from rich.table import Table

import pspnet_fast
from pspnet_fast.data import SegmentationDataset, eval_transform, open_dataset, read_image, write_scenes
from pspnet_fast.data.labels import color_text
from pspnet_fast.demo.compare_training import CONTROL, FUSED, PLAIN, WARM_UP, Run, compare, plot_losses
from pspnet_fast.engine import (
    ConfigError,
    TrainConfig,
    TrainResult,
    colorize,
    config_from_dict,
    evaluate,
    load_trained,
    predict_paths,
    train,
)
from pspnet_fast.engine.console import framed
from pspnet_fast.engine.predict import Written
from pspnet_fast.engine.run_log import plot_table
from pspnet_fast.machine import describe_machine

MARKER = ".pspnet_fast_demo"
SHEET_ROWS = 5
FIRST_STEPS_SECONDS = 75.0  # then the comparison ends early, so that the demo ends in time on a slow machine

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_hidden = {"hidden": True, "min": 1}


@app.command()
@framed
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes; an earlier demo there is replaced.")]
    = Path("demo"),
    minutes: Annotated[float, typer.Option(help="Training time; the comparison and the pictures come on top.")] = 2.5,
    train_scenes: Annotated[int, typer.Option(**_hidden)] = 160,
    val_scenes: Annotated[int, typer.Option(**_hidden)] = 24,
    height: Annotated[int, typer.Option(**_hidden)] = 144,
    width: Annotated[int, typer.Option(**_hidden)] = 192,
    crop: Annotated[int, typer.Option(**_hidden)] = 129,
    batch: Annotated[int, typer.Option(**_hidden)] = 8,
    first_steps: Annotated[int, typer.Option(**_hidden)] = 15,
) -> None:  # fmt: skip
    """Train a small PSPNet on drawn street scenes; compare its first steps with stock PyTorch; picture what it sees."""
    started, console = time.monotonic(), Console(highlight=False)
    config = configuration(out, crop, batch, minutes)
    prepare(out)
    where = ", ".join(f"{name} {value}" for name, value in describe_machine().items())
    console.print(f"pspnet_fast {pspnet_fast.__version__} on {where}")

    console.rule(f"1. Drawing {train_scenes} + {val_scenes} street scenes of {width}x{height}")
    write_scenes(out / "scenes", train=train_scenes, val=val_scenes, size=(height, width))

    console.rule("2. The first training steps, on stock PyTorch operators and on fused ones")
    runs = compare(by_steps(config), out / "first_steps", first_steps, seconds=FIRST_STEPS_SECONDS)
    console.print(losses_table(runs), costs_table(runs))
    console.print(explanation(runs))

    console.rule(f"3. Training on fused operators for {minutes:g} minutes ({config.run.amp} precision)")
    result = train(config)

    console.rule(f"4. Evaluating on the {val_scenes} validation scenes, and picturing")
    evaluate_and_picture(console, config, result, runs, out)
    console.print(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")


def configuration(out: Path, crop: int, batch: int, minutes: float) -> TrainConfig:
    """The demo's training run; the clock drives its schedule, so that a slow machine finishes it too."""
    fast_bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return config_from_dict(
        {
            "data": {"name": "scenes", "root": str(out / "scenes"), "crop": crop, "workers": 1, "scale": [0.75, 1.5]},
            "model": {"layers": 18},
            "optim": {"lr": 0.05, "head_lr_ratio": 1.0, "batch_size": batch, "warmup_steps": 20,
                      "schedule_by": "time", "class_weights": "frequency", "class_weight_power": 0.5},
            "run": {"folder": str(out / "run"), "max_minutes": minutes, "validate_every": 0, "pictures": 0,
                    "amp": "bf16" if fast_bf16 else "none"},
        },
        source="demo",
    )  # fmt: skip


def by_steps(config: TrainConfig) -> TrainConfig:
    """The same run in float32 and by steps, so that two runs can be compared step by step."""
    tree = config.to_dict()
    tree["run"] |= {"amp": "none", "max_minutes": None, "max_steps": 10**6, "save_every_seconds": 1e9}
    tree["optim"]["schedule_by"] = "steps"
    return config_from_dict(tree, source="demo")


def prepare(out: Path) -> None:
    """An empty folder with the demo's marker file.

    Raises:
        ConfigError: it holds something that no demo wrote.
    """
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists()):
            raise ConfigError(f"--out {out} holds something that is not an earlier demo: choose a new folder")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).write_text("Written by pspnet_fast.demo, which replaces this folder when it is run again.\n")


def losses_table(runs: Mapping[str, Run]) -> Table:
    """The losses by step."""
    table = Table(title="loss (main + 0.4 · auxiliary), same seed, float32")
    for column in ("step", "plain", "fused", "fused - plain", "control - plain"):
        table.add_column(column, justify="right")
    losses = (runs[name].losses for name in (PLAIN, FUSED, CONTROL))
    for step, (plain, fused, control) in enumerate(zip(*losses, strict=True), start=1):
        table.add_row(str(step), f"{plain:.6f}", f"{fused:.6f}", f"{fused - plain:+.1e}", f"{control - plain:+.1e}")
    return table


def costs_table(runs: Mapping[str, Run]) -> Table:
    """Time per step and peak memory."""
    table = Table(title="cost of a training step")
    for column in ("", "plain", "fused", "plain / fused"):
        table.add_column(column, justify="right")
    plain, fused = runs[PLAIN], runs[FUSED]
    memory = "torch's peak memory" if torch.cuda.is_available() else "peak memory of the process"
    for title, unit, a, b in (
        ("time, median", "ms", 1e3 * plain.seconds, 1e3 * fused.seconds),
        (memory, "MB", plain.peak_memory / 2**20, fused.peak_memory / 2**20),
    ):
        table.add_row(title, f"{a:.0f} {unit}", f"{b:.0f} {unit}", f"{a / b:.2f}")
    return table


def explanation(runs: Mapping[str, Run]) -> str:
    """What the two tables compare."""
    warm_up = min(WARM_UP, len(runs[PLAIN].losses) - 1)
    return (
        "plain: use_backend('reference'). control: plain too, but from weights changed in their last digit, as "
        "rounding changes them; training amplifies that, so it drifts from plain as fused does. The processes took "
        f"their steps in turn; times are of steps {warm_up + 1} and later.\n"
        "This net and its crops are small, and so is what is fused in them: the README has PSPNet50 at 473x473."
    )


def evaluate_and_picture(
    console: Console, config: TrainConfig, result: TrainResult, runs: Mapping[str, Run], out: Path
) -> None:
    """Metrics of the best checkpoint; overlays, contact sheet and loss curves."""
    trained = load_trained(result.folder / "best.pt")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scenes, data = out / "scenes", config.data
    val_set = open_dataset("scenes", scenes, "val", transform=eval_transform(data.mean, data.std))
    metrics = evaluate(trained.model, val_set, config.eval, amp=config.run.amp)
    console.print(metrics.table("validation scenes"))
    console.print(
        f"after {result.step} steps: {result.images_per_second:.1f} images/s, "
        f"peak memory {result.peak_memory / 2**20:.0f} MB"
    )

    written = predict_paths(trained, [scenes / "images" / "val"], out / "predictions", amp=config.run.amp)
    contact_sheet(open_dataset("scenes", scenes, "val"), written[:SHEET_ROWS], out / "contact_sheet.png")
    loss_curves(result.folder / "losses.csv", runs, out / "loss_curves.png")
    for title, path in (
        ("contact sheet", out / "contact_sheet.png"),
        ("loss curves", out / "loss_curves.png"),
        ("overlays", out / "predictions" / "overlay"),
        ("checkpoint", result.folder / "best.pt"),
    ):
        console.print(f"{title:<15} {path}", soft_wrap=True)


def contact_sheet(dataset: SegmentationDataset, written: Sequence[Written], picture: Path) -> None:
    """Image, label and prediction of scenes, a row each, over a legend of the classes.

    Args:
        dataset: without transform; its first samples are those predicted.
        written: the predictions.
    """
    height, width = dataset[0][1].shape
    rows = len(written)
    panel = 3.2  # inches
    figure, axes = pyplot.subplots(
        rows, 3, figsize=(3 * panel, rows * panel * height / width + 1.0), layout="constrained", squeeze=False
    )
    for index, (row, files) in enumerate(zip(axes, written, strict=True)):
        image, label = dataset[index]
        prediction = read_image(files.labels)[0]
        panels = (image.permute(1, 2, 0), colorize(label, dataset.info), colorize(prediction, dataset.info))
        for axis, content in zip(row, panels, strict=True):
            axis.imshow(content.numpy(), interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("image", "label", "prediction"), strict=True):
        axis.set_title(title, fontsize=11)
    patches = [
        Patch(color=color_text(color), label=name)
        for name, color in zip(dataset.info.classes, dataset.info.palette, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def loss_curves(table: Path, runs: Mapping[str, Run], picture: Path) -> None:
    """The run's losses by step (``losses.csv``), and those of the first steps on stock and fused operators."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2))
    plot_table(left, table)
    left.set_title("training on fused operators")
    plot_losses(right, {name: run.losses for name, run in runs.items()})
    right.set_title("the first steps on stock and fused operators")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
