"""The demo's pictures: a contact sheet of predictions, and loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

from pspnet_fast.data import SegmentationDataset, read_image
from pspnet_fast.data.labels import color_text
from pspnet_fast.demo.compare_training import Run, plot_losses
from pspnet_fast.engine.pictures import colorize
from pspnet_fast.engine.predict import Written
from pspnet_fast.engine.run_log import plot_table


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
