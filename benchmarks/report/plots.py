"""The pictures in docs/: curves over an axis, loss and mIoU of fused and plain training.

Each SVG holds, in its metadata, a digest of the results that it was drawn from: :func:`is_current` then tells, without
matplotlib, whether a picture shows the numbers that results/ has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.case import EAGER, OURS
from benchmarks.report.curves import MEANING, axis_of
from benchmarks.report.markdown import Results, Row, peaks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {EAGER: "#8a8f98", OURS: "#d1495b", "plain": "#8a8f98", "fused": "#d1495b", "control": "#30638e"}
NAMES = {EAGER: "eager", OURS: "pspnet_fast"}
STYLE = {
    "svg.hashsalt": "pspnet_fast",  # the same bytes for the same numbers
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def scaling(results: Results) -> Figure:
    """Time above (with its 20th to 80th percentile), memory below, a column an operator.

    Both axes are logarithmic, so that a straight line is a power.
    """
    from matplotlib import pyplot

    axis, rows = axis_of(results), results["rows"]
    operators = list(dict.fromkeys(row["operator"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(operators), figsize=(3.4 * len(operators) + 0.6, 5), layout="constrained", squeeze=False, sharex=True
    )
    for column, operator in zip(axes.T, operators, strict=True):
        own = [row for row in rows if row["operator"] == operator]
        for peer in (EAGER, OURS):
            _over_axis(column[0], peer, [(row["value"], _spread(row, peer)) for row in own])
            _over_axis(column[1], peer, [(row["value"], _peak(row, peer)) for row in own])
        for axes_of_one in column:
            _logarithmic(axes_of_one)
        column[0].set_title(operator)
        column[1].set_xlabel(MEANING[axis])
        column[1].set_xticks(list(dict.fromkeys(row["value"] for row in rows)))
        column[1].xaxis.set_major_formatter("{x:.0f}")
    axes[0, 0].set_ylabel("time, ms")
    axes[1, 0].set_ylabel("peak memory, MB")
    axes[0, 0].legend()
    return figure


def _spread(row: Row, peer: str) -> tuple[float, ...] | None:
    """Median, 20th and 80th percentile of a variant's milliseconds."""
    time = row.get("milliseconds", {}).get(row.get("ours") if peer == OURS else peer)
    return None if time is None else (time["median"], time["p20"], time["p80"])


def _peak(row: Row, peer: str) -> tuple[float, ...] | None:
    size = peaks(row).get(peer)
    return None if size is None else (size / 1e6,)


def _over_axis(axes: Axes, peer: str, points: Sequence[tuple[float, tuple[float, ...] | None]]) -> None:
    """A line through the points that were measured, in a band between the percentiles where there are some."""
    measured = [(value, *numbers) for value, numbers in points if numbers is not None and numbers[0] > 0]
    if not measured:
        return
    values, middle, *band = zip(*measured, strict=True)
    axes.plot(values, middle, "o-", color=COLORS[peer], label=NAMES[peer], markersize=4)
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


def agreement(results: Results) -> Figure:
    """Loss of every step, and below it how far fused and control lie from plain; mIoU where it was measured."""
    from matplotlib import pyplot

    rows = results["rows"]
    with_miou = any("miou" in row for row in rows)
    figure, axes = pyplot.subplots(
        2 + with_miou, len(rows), figsize=(5 * len(rows), 5.4 + 2.2 * with_miou), layout="constrained", squeeze=False
    )
    for column, row in zip(axes.T, rows, strict=True):
        steps = range(1, row["steps"] + 1)
        # The widest below, so that all three can be seen where they coincide.
        for name, width in (("plain", 4.0), ("control", 2.0), ("fused", 1.0)):
            column[0].plot(steps, row["loss"][name], color=COLORS[name], linewidth=width, label=name)
            if "miou" in row:
                miou = [100 * value for value in row["miou"][name]]
                column[2].plot(row["miou"]["steps"], miou, "o-", color=COLORS[name], linewidth=width, markersize=4)
        for name in ("control", "fused"):
            gaps = [abs(a - b) for a, b in zip(row["loss"][name], row["loss"]["plain"], strict=True)]
            # No difference at all has no place on a logarithmic axis.
            column[1].plot(steps, [gap or float("nan") for gap in gaps], color=COLORS[name], linewidth=1)
        column[0].set_title(row["dtype"].removeprefix("torch."))
        column[1].set_yscale("log")
        column[-1].set_xlabel("step")
    for axis, label in zip(axes[:, 0], ("main + λ · auxiliary loss", "|loss − plain loss|", "mIoU, %"), strict=False):
        axis.set_ylabel(label)
    axes[0, 0].legend()
    return figure


# By what a result file's name starts with.
FIGURES: dict[str, Callable[[Results], Figure]] = {"scaling_": scaling, "agreement_": agreement}


def figure_of(name: str) -> Callable[[Results], Figure] | None:
    """What draws the results of that name; None if they have no picture."""
    return next((draw for prefix, draw in FIGURES.items() if name.startswith(prefix)), None)


def digest(results: Results) -> str:
    """Tells results from all others."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def draw(results: Results, folder: Path) -> Path:
    """Write the picture of a result file to ``folder/NAME.svg``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, figure_from = folder / f"{results['name']}.svg", figure_of(results["name"])
    assert figure_from is not None
    with matplotlib.rc_context(STYLE):
        figure = figure_from(results)
        description = f"{results['name']}.json, sha256 {digest(results)}"
        figure.savefig(picture, metadata={"Date": None, "Creator": None, "Description": description})
        pyplot.close(figure)
    return picture


def is_current(results: Results, folder: Path) -> bool:
    """Whether the picture of a result file is there and was drawn from these very results."""
    picture = folder / f"{results['name']}.svg"
    return picture.is_file() and digest(results) in picture.read_text(encoding="utf-8")
