"""Draws what benchmarks/aux_weight.py kept: main loss, mIoU along the runs, and mIoU at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.aux_weight_report import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITHOUT = "#1f2733"  # λ = 0


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Write the picture; it depends on ``results`` alone, to the byte where it is an SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    weights = [row["weight"] for row in results["summary"]["weights"]]
    shades = iter(matplotlib.colormaps["plasma"](np.linspace(0.15, 0.85, sum(weight > 0 for weight in weights))))
    colors = {weight: WITHOUT if weight == 0 else next(shades) for weight in weights}

    with matplotlib.rc_context({"svg.hashsalt": "aux_weight", "font.size": 9}):
        figure, (loss, miou, final) = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
        for weight, color in colors.items():
            runs = [run for run in results["runs"] if run["weight"] == weight]
            style = {"color": color, "label": f"λ = {weight:g}", "linestyle": "--" if weight == 0 else "-"}
            band(loss, [smooth(run["main_loss"]) for run in runs], style)
            band(miou, [[(step, 100 * value) for step, value in run["subset_miou"]] for run in runs], style)
        ends(final, results, colors)
        steps = results["config"]["run"]["max_steps"]
        every = results["config"]["validation"]["every"]
        seeds = len(results["summary"]["seeds"])
        loss.set(xlabel="step", ylabel="main loss (running mean)", xlim=(0, steps))
        part = "" if every == 1 else f", one image in {every}"
        miou.set(xlabel="step", ylabel=f"val mIoU in %{part}", xlim=(0, steps))
        final.set(xlabel="λ", ylabel="val mIoU in % at the end, all images", xticks=weights)
        for axes in (loss, miou, final):
            axes.grid(alpha=0.25)
        loss.legend(title=f"mean and range\nof {seeds} seed{'s' * (seeds > 1)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)
        pyplot.close(figure)
    return path


def band(axes: Axes, curves: Sequence[Sequence[Sequence[float]]], style: Mapping[str, Any]) -> None:
    """The mean of the seeds' curves, and their range behind it."""
    steps = [step for step, _ in curves[0]]
    values = np.array([[value for _, value in curve] for curve in curves])
    axes.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)
    axes.plot(steps, values.mean(0), linewidth=1.4, **style)


def ends(axes: Axes, results: Mapping[str, Any], colors: Mapping[float, Any]) -> None:
    """mIoU over λ: a thin line for each seed, whose runs are pairs, and the mean."""
    rows = results["summary"]["weights"]
    weights = [row["weight"] for row in rows]
    for values in zip(*(row["final_miou"]["values"] for row in rows), strict=True):
        axes.plot(weights, [100 * value for value in values], color="#8792a2", linewidth=0.8, marker=".", zorder=1)
    means = [100 * row["final_miou"]["mean"] for row in rows]
    axes.plot(weights, means, color=WITHOUT, linewidth=1.4, zorder=2)
    axes.scatter(weights, means, c=[colors[weight] for weight in weights], s=60, zorder=3)
    axes.set_title("thin: one line a seed; thick: their mean", fontsize="medium", color="#5b6675")
