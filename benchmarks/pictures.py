"""The pictures in docs/: curves over an axis, training of fused and plain, the weight of the auxiliary loss.

Each picture holds, in its metadata, a digest of the results that it was drawn from: :func:`is_current` then tells,
without matplotlib, whether a picture shows the numbers that results/ has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.markdown import File, by_peer, peaks
from benchmarks.peers import EAGER, OURS, is_ours
from benchmarks.render import MEANING, rows_of_axis
from benchmarks.render_networks import setting, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {EAGER: "#8a8f98", OURS: "#d1495b"}
SUFFIX = ".png"
WITHOUT = "#1f2733"  # λ = 0
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


# ---- scaling ---------------------------------------------------------------------------------------------------------


def scaling(axis: str, file: File) -> Figure:
    """Time above (with its 20th to 80th percentile), memory below, a column for each operator.

    Both axes are logarithmic, so that a straight line is a power.
    """
    from matplotlib import pyplot

    rows = rows_of_axis(file, axis)
    operators = list(dict.fromkeys(row["operator"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(operators), figsize=(3.4 * len(operators) + 0.6, 5), layout="constrained", squeeze=False, sharex=True
    )
    for column, operator in zip(axes.T, operators, strict=True):
        for peer in (EAGER, OURS):
            times, sizes = [], []
            for row in (row for row in rows if row["operator"] == operator):
                if time := row.get("milliseconds", {}).get(row.get("ours") if peer == OURS else peer):
                    times.append((row["value"], time["median"], time["p20"], time["p80"]))
                if size := peaks(row).get(peer):
                    sizes.append((row["value"], size / 1e6))
            _over_axis(column[0], peer, times)
            _over_axis(column[1], peer, sizes)
        for part in column:
            _logarithmic(part)
        column[0].set_title(operator)
        column[1].set_xlabel(MEANING[axis])
        column[1].set_xticks(list(dict.fromkeys(row["value"] for row in rows)))
        column[1].xaxis.set_major_formatter("{x:.0f}")
    axes[0, 0].set_ylabel("time, ms")
    axes[1, 0].set_ylabel("peak memory, MB")
    axes[0, 0].legend()
    return figure


def _over_axis(axes: Axes, peer: str, points: Sequence[tuple[float, ...]]) -> None:
    """A line through what was measured, in a band between the percentiles where there are some."""
    if points:
        values, middle, *band = zip(*points, strict=True)
        axes.plot(values, middle, "o-", color=COLORS[peer], label=peer, markersize=4)
        if band:
            axes.fill_between(values, *band, color=COLORS[peer], alpha=0.25, linewidth=0)


def _logarithmic(axes: Axes) -> None:
    """Both axes logarithmic, with more numbers the fewer decades there are."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(xscale="log", yscale="log")
    least, most = axes.get_ylim()
    subs = (1,) if most > 1e3 * least else (1, 2, 5) if most > 10 * least else (1, 1.5, 2, 3, 5, 7)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())


# ---- training --------------------------------------------------------------------------------------------------------


def training(file: File) -> Figure:
    """Loss of every step, how far fused and control lie from plain, and mIoU where it was measured."""
    from matplotlib import pyplot

    from pspnet_fast.demo.compare_training import COLORS, plot_losses

    rows = file["rows"]
    with_miou = any("miou" in row for row in rows)
    figure, axes = pyplot.subplots(
        2 + with_miou, len(rows), figsize=(5 * len(rows), 5.4 + 2.2 * with_miou), layout="constrained", squeeze=False
    )
    for column, row in zip(axes.T, rows, strict=True):
        steps = range(1, row["steps"] + 1)
        plot_losses(column[0], row["loss"])
        for name in ("control", "fused"):
            gaps = [abs(a - b) for a, b in zip(row["loss"][name], row["loss"]["plain"], strict=True)]
            # No difference at all has no place on a logarithmic axis.
            column[1].plot(steps, [gap or float("nan") for gap in gaps], color=COLORS[name], linewidth=1)
        for name in ("plain", "control", "fused") if "miou" in row else ():
            miou = [100 * value for value in row["miou"][name]]
            column[2].plot(row["miou"]["steps"], miou, "o-", color=COLORS[name], markersize=4)
        column[0].set_title(row["dtype"])
        column[1].set_yscale("log")
        column[-1].set_xlabel("step")
    for axis, label in zip(axes[1:, 0], ("|loss − plain loss|", "mIoU, %"), strict=False):
        axis.set_ylabel(label)
    return figure


def aux_weight(file: File) -> Figure:
    """Main loss and mIoU along the runs, mean and range of the seeds; mIoU at their end."""
    import matplotlib
    import numpy as np
    from matplotlib import pyplot

    from benchmarks.aux_weight import smooth

    rows = file["summary"]["weights"]
    weights = [row["weight"] for row in rows]
    shades = iter(matplotlib.colormaps["plasma"](np.linspace(0.15, 0.85, sum(weight > 0 for weight in weights))))
    colors = {weight: WITHOUT if weight == 0 else next(shades) for weight in weights}
    figure, (loss, miou, final) = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for weight, color in colors.items():
        runs = [run for run in file["runs"] if run["weight"] == weight]
        style = {"color": color, "label": f"λ = {weight:g}", "linestyle": "--" if weight == 0 else "-"}
        _band(loss, [smooth(run["main_loss"]) for run in runs], style)
        _band(miou, [[(step, 100 * value) for step, value in run["subset_miou"]] for run in runs], style)
    for values in zip(*(row["final_miou"]["values"] for row in rows), strict=True):
        final.plot(weights, [100 * value for value in values], color="#8792a2", linewidth=0.8, marker=".", zorder=1)
    means = [100 * row["final_miou"]["mean"] for row in rows]
    final.plot(weights, means, color=WITHOUT, linewidth=1.4, zorder=2)
    final.scatter(weights, means, c=[colors[weight] for weight in weights], s=60, zorder=3)
    final.set_title("thin: one line a seed; thick: their mean", fontsize="medium", color="#5b6675")
    steps, every = file["config"]["run"]["max_steps"], file["config"].get("validation", {}).get("every", 1)
    loss.set(xlabel="step", ylabel="main loss (running mean)", xlim=(0, steps))
    miou.set(xlabel="step", ylabel="val mIoU in %" + ("" if every == 1 else f", one image in {every}"), xlim=(0, steps))
    final.set(xlabel="λ", ylabel="val mIoU in % at the end, all images", xticks=weights)
    seeds = len(file["summary"]["seeds"])
    loss.legend(title=f"mean and range\nof {seeds} seed{'s' * (seeds > 1)}")
    return figure


def _band(axes: Axes, curves: Sequence[Sequence[Sequence[float]]], style: Mapping[str, Any]) -> None:
    """The mean of the seeds' curves, and their range behind it."""
    steps = [step for step, _ in curves[0]]
    values = [[value for _, value in curve] for curve in curves]
    low, high = ([choose(column) for column in zip(*values, strict=True)] for choose in (min, max))
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
    means = [sum(column) / len(column) for column in zip(*values, strict=True)]
    axes.plot(steps, means, linewidth=1.4, **style)


# ---- inference -------------------------------------------------------------------------------------------------------


def runtimes(file: File) -> Figure:
    """A bar for each peer, a column for each size and precision."""
    from matplotlib import pyplot

    rows = file["rows"]
    figure, axes = pyplot.subplots(
        1, len(rows), figsize=(2.6 * len(rows) + 2.4, 3.4), layout="constrained", squeeze=False, sharey=True
    )
    peers = list(dict.fromkeys(line["peer"] for line in by_peer(rows)))[::-1]
    for part, row in zip(axes[0], rows, strict=True):
        for line in by_peer([row]):
            ours = is_ours(line["peer"]) or "reduced" in line["peer"]
            part.barh(peers.index(line["peer"]), line["time"]["median"], color=COLORS[OURS if ours else EAGER])
        part.set_title(setting(row))
        part.set_xlabel("ms")
        part.set_yticks(range(len(peers)), [title(peer).replace("*", "").replace("`", "") for peer in peers])
    return figure


# ---- files -----------------------------------------------------------------------------------------------------------


def figures_of(file: File) -> Iterator[tuple[str, Callable[[File], Figure]]]:
    """The pictures of a result file: their names without suffix, and what draws them."""
    if file["name"].startswith("scaling"):
        for axis in MEANING:
            if rows_of_axis(file, axis):
                yield f"{file['name']}_{axis}", partial(scaling, axis)
    for table in (training, aux_weight, runtimes):
        if file["name"].startswith(table.__name__):
            yield file["name"], table


def digest(file: File) -> str:
    """Distinguishes results from all others."""
    return hashlib.sha256(json.dumps(file, sort_keys=True).encode()).hexdigest()


def draw(file: File, name: str, figure_of: Callable[[File], Figure], folder: Path) -> Path:
    """Write one picture of a result file to ``folder``; the same bytes for the same results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture = folder / f"{name}{SUFFIX}"
    with matplotlib.rc_context(STYLE):
        description = f"{file['name']}.json, sha256 {digest(file)}"
        figure_of(file).savefig(picture, dpi=100, metadata={"Description": description})
        pyplot.close()
    return picture


def is_current(file: File, name: str, folder: Path) -> bool:
    """Whether a picture of a result file exists and was drawn from these very results."""
    picture = folder / f"{name}{SUFFIX}"
    return picture.is_file() and digest(file).encode() in picture.read_bytes()
