"""The demo's pictures: a contact sheet of predictions, and loss curves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

from pspnet_fast.data import SegmentationDataset, read_image
from pspnet_fast.demo.roads import CONTROL, FUSED, PLAIN, Road
from pspnet_fast.engine.pictures import colorize
from pspnet_fast.engine.predict import Written

COLORS = {PLAIN: "#8a8f98", FUSED: "#d1495b", CONTROL: "#30638e"}


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
        Patch(color="#{:02x}{:02x}{:02x}".format(*color), label=name)
        for name, color in zip(dataset.info.classes, dataset.info.palette, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def loss_curves(table: Path, roads: dict[str, Road], picture: Path) -> None:
    """The run's loss by step (``losses.csv``), and that of the first steps on every road."""
    with table.open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2))

    left.plot(range(1, len(losses) + 1), losses, color=COLORS[FUSED], alpha=0.25, linewidth=0.8)
    window = max(1, len(losses) // 25)
    means = [sum(part) / len(part) for part in (losses[max(0, i - window) : i] for i in range(1, len(losses) + 1))]
    left.plot(range(1, len(losses) + 1), means, color=COLORS[FUSED], label=f"mean of {window} steps")
    left.set(title="training on fused operators", xlabel="step", ylabel="main + λ · auxiliary loss", ylim=(0, None))
    left.legend(frameon=False)

    steps = range(1, len(roads[PLAIN].losses) + 1)
    for name, style, size in ((PLAIN, "o-", 7.0), (CONTROL, "^:", 3.5), (FUSED, ".-", 6.0)):
        label = f"{PLAIN}, weights changed by 1e-7" if name == CONTROL else name
        right.plot(steps, roads[name].losses, style, color=COLORS[name], markersize=size, linewidth=1, label=label)
    right.set(title="the first steps on both roads", xlabel="step")
    right.legend(frameon=False)

    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
