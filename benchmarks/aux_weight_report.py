"""What came out of benchmarks/aux_weight.py, whichever way: summary, table and sentences, from the runs alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

SMOOTH = 5  # points of a loss curve whose mean counts as the loss reached
LAST = 0.1  # of a run, over which its final main loss is averaged

Run = Mapping[str, Any]
Curve = Sequence[Sequence[float]]  # of (step, value)


def summary(
    runs: Sequence[Run], loss_levels: Sequence[float] = (), miou_levels: Sequence[float] = ()
) -> dict[str, Any]:
    """Means and spreads over the seeds for each λ, and differences to λ = 0, seed by seed.

    Args:
        runs: rows of benchmarks/aux_weight.py; every seed has every λ, 0 among them.
        loss_levels, miou_levels: what counts as reached, beside the best level that every run reaches.
    """
    weights, seeds = sorted({run["weight"] for run in runs}), sorted({run["seed"] for run in runs})
    found = {(run["weight"], run["seed"]): measured(run) for run in runs}
    # Rounded away from the goal, so that the run that sets the level reaches it too.
    common_loss = math.ceil(1e3 * max(min(v for _, v in run["loss"]) for run in found.values())) / 1e3
    common_miou = math.floor(1e3 * min(max(v for _, v in run["miou"]) for run in found.values())) / 1e3

    rows = []
    for weight in weights:
        mine, plain = ([found[w, seed] for seed in seeds] for w in (weight, 0.0))
        row: dict[str, Any] = {"weight": weight}
        for key in ("final_miou", "final_loss", "mean_loss"):
            row[key] = spread([run[key] for run in mine])
            row[f"{key}_difference"] = spread([a[key] - b[key] for a, b in zip(mine, plain, strict=True)])
        for key, levels, sign in (
            ("loss", sorted({*loss_levels, common_loss}), -1),
            ("miou", sorted({*miou_levels, common_miou}), +1),
        ):
            row[f"steps_to_{key}"] = {
                f"{level:g}": [reached(run[key], level, sign) for run in mine] for level in levels
            }
        rows.append(row)
    return {"seeds": seeds, "weights": rows}


def measured(run: Run) -> dict[str, Any]:
    """The curves and numbers of one run that are compared."""
    losses = [value for _, value in run["main_loss"]]
    last = losses[-max(1, round(LAST * len(losses))) :]
    return {
        "loss": smooth(run["main_loss"]),
        "miou": run["subset_miou"],
        "final_miou": run["miou"],
        "final_loss": statistics.fmean(last),
        "mean_loss": statistics.fmean(losses),  # the area under the curve: convergence without a chosen level
    }


def smooth(curve: Curve) -> list[tuple[float, float]]:
    """The mean over the last :data:`SMOOTH` points, from the first point that has as many (all of a shorter curve)."""
    width = min(SMOOTH, len(curve))
    return [
        (curve[end - 1][0], statistics.fmean(value for _, value in curve[end - width : end]))
        for end in range(width, len(curve) + 1)
    ]


def reached(curve: Curve, level: float, direction: int) -> float | None:
    """The first step at which the curve passes ``level`` upwards (+1) or downwards (-1), linear between its points."""
    if direction * (curve[0][1] - level) >= 0:
        return curve[0][0]
    for (before, low), (step, high) in pairwise(curve):
        if direction * (high - level) >= 0:
            return round(before + (level - low) / (high - low) * (step - before), 1)
    return None


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The values, one a seed, their mean, extremes, and standard deviation (None of a single one)."""
    deviation = round(statistics.stdev(values), 6) if len(values) > 1 else None
    low, mean, high = (round(number, 6) for number in (min(values), statistics.fmean(values), max(values)))
    return {"mean": mean, "std": deviation, "min": low, "max": high, "values": [round(value, 6) for value in values]}


def table(results: Mapping[str, Any]) -> str:
    """A line for each λ: mIoU and main loss with their spread, differences to λ = 0, steps to each level."""
    rows = results["summary"]["weights"]
    levels = [(key, level) for key in ("steps_to_loss", "steps_to_miou") for level in rows[0][key]]
    names = {"steps_to_loss": "to loss {}", "steps_to_miou": "to mIoU {}"}
    heads = ["mIoU (min to max)", "against λ=0", "main loss at end", "against λ=0", "mean main loss", "against λ=0"]
    heads += [f"steps {names[key].format(level)}" for key, level in levels]
    lines = [["λ", *heads]]
    for row in rows:
        cells = [f"{row['weight']:g}"]
        for key, scale, digits in (("final_miou", 100, 2), ("final_loss", 1, 3), ("mean_loss", 1, 3)):
            cells += [between(row[key], scale, f".{digits}f"), between(row[f"{key}_difference"], scale, f"+.{digits}f")]
        cells += [steps_text(row[key][level]) for key, level in levels]
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def between(values: Mapping[str, Any], scale: float, form: str) -> str:
    """'22.31 (21.80 to 22.90)'."""
    mean, low, high = (format(scale * values[key], form) for key in ("mean", "min", "max"))
    return f"{mean} ({low} to {high})"


def steps_text(steps: Sequence[float | None]) -> str:
    """The mean over the seeds and its extremes; how many reached the level, where not all did."""
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return f"{len(known)} of {len(steps)} reach it"
    return f"{statistics.fmean(known):.0f} ({min(known):.0f} to {max(known):.0f})"


def sentences(results: Mapping[str, Any]) -> str:
    """What the runs say of the claim, with how little so few seeds can say."""
    found, config = results["summary"], results["config"]
    rows = {row["weight"]: row for row in found["weights"]}
    plain, others = rows[0.0], [row for weight, row in rows.items() if weight > 0]
    n = len(found["seeds"])
    optim, data = config["optim"], config["data"]
    words = [
        f"{results['data']}, {n} seed{'s' * (n > 1)}, {config['run']['max_steps']} steps of {optim['batch_size']} "
        f"crops of {data['crop']}, ResNet-{config['model']['layers']} from random weights. Each run is compared with "
        "λ=0 from the same weights, on the same crops, with the same dropout.",
        f"mIoU {verdict(others, 'final_miou_difference')}; "
        f"λ=0 alone goes from {100 * plain['final_miou']['min']:.2f} to {100 * plain['final_miou']['max']:.2f} points.",
        f"The main loss, averaged over the whole run, {verdict(others, 'mean_loss_difference')}.",
    ]
    for row in others:
        words.append(
            f"λ={row['weight']:g}: mIoU {between(row['final_miou_difference'], 100, '+.2f')} points, mean main loss "
            f"{between(row['mean_loss_difference'], 1, '+.3f')}."
        )
    words.append(
        f"One sign in all of {n} seeds has, for a weight without any effect, a chance of 1 in {2 ** (n - 1)}"
        f"{', and ' + str(len(others)) + ' weights were tried' if len(others) > 1 else ''}; "
        "and training this short says nothing of a long one."
    )
    return "\n".join(words)


def verdict(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """'is higher in every seed with λ=0.2, 0.4; not of one sign over the seeds with λ=1'."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        low, high = row[key]["min"], row[key]["max"]
        kind = "higher in every seed" if low > 0 else "lower in every seed"
        if low <= 0 <= high:
            kind = "not of one sign over the seeds"
        groups.setdefault(kind, []).append(f"{row['weight']:g}")
    return "is " + "; ".join(f"{kind} with λ={', '.join(weights)}" for kind, weights in groups.items())
