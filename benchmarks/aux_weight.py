"""What does the auxiliary loss do? The same network trained with several weights λ of it, over several seeds.

    python -m benchmarks.aux_weight                                  drawn street scenes, no data needed
    python -m benchmarks.aux_weight --root CAMVID --save             keep the result for docs/benchmarks.md
    python -m benchmarks.aux_weight optim.batch_size=4 data.crop=65  any option of the training

The claim (Zhao et al. 2017, sections 3.3 and 5.1.2): an auxiliary loss on layer3, added with λ = 0.4, helps to train
the deep network. The runs of a seed differ in λ alone: initial weights, crops, their order and dropout are the same, so
that pairs are compared. Each run is an ordinary training (:func:`pspnet_fast.engine.train`) in a folder of its own,
which a command that was stopped continues.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.render_training import aux_weight
from benchmarks.results import RESULTS, ROOT, machine, write_json
from pspnet_fast.data import write_scenes
from pspnet_fast.engine import TrainConfig, load_config, train
from pspnet_fast.engine.config_io import changed_keys

POINTS = 100  # of a loss curve; each is the mean over as many steps as it takes
SMOOTH = 5  # points of a loss curve whose mean counts as the loss reached
LAST = 0.1  # of a run, over which its final main loss is averaged
SEPARATE = ("data.root", "run.folder", "run.seed", "optim.aux_weight")  # options of one machine or one run
Run = Mapping[str, Any]
Curve = Sequence[Sequence[float]]  # of (step, value)


def configuration(options: argparse.Namespace, weight: float, seed: int) -> TrainConfig:
    """The training of one run: camvid_r18's recipe, its schedule over a number of steps."""
    first = [
        f"data.name={'camvid' if options.root else 'scenes'}",
        f"data.root={options.root or options.out / 'scenes'}",
        "data.crop=97",
        "optim.schedule_by=steps",
        "run.max_minutes=null",
        "run.max_steps=360",
        "run.validate_every=2",
        "run.pictures=0",
    ]
    folder = options.out / f"seed{seed}_weight{weight:g}"
    last = [f"optim.aux_weight={weight}", f"run.seed={seed}", f"run.folder={folder}"]
    return load_config("camvid_r18", [*first, *options.overrides, *last])


def trained(config: TrainConfig) -> dict[str, Any]:
    """Train, go on, or find all trained; the curves, and the metrics of the last weights.

    The last weights, whichever were the best: a choice by the images that are then counted would be biased.

    Raises:
        ValueError: the folder holds a run of another setting.
    """
    folder = Path(config.run.folder or "")
    if (folder / "config.yaml").is_file():
        kept = load_config(folder / "config.yaml")
        if changes := changed_keys(kept.to_dict(), config.to_dict()):
            raise ValueError(f"{folder} is of another setting ({'; '.join(changes)}): choose another --out")
    train(config, resume=True)
    texts = ((folder / name).read_text(encoding="utf-8") for name in ("losses.csv", "metrics.csv"))
    curve, validations = (list(csv.DictReader(text.splitlines())) for text in texts)
    last = validations[-1]
    return {
        "main_loss": thinned([(int(row["step"]), float(row["main_loss"])) for row in curve]),
        "subset_miou": [[int(row["step"]), float(row["miou"])] for row in validations],
        "miou": float(last["miou"]),
        "accuracy": float(last["accuracy"]),
        "iou": {name.removeprefix("iou_"): float(value) for name, value in last.items() if name.startswith("iou_")},
        "minutes": round(float(last["minutes"]), 2),
    }


def thinned(curve: Curve) -> list[list[float]]:
    """[last step, mean value] of consecutive blocks, at most :data:`POINTS` of them."""
    block = -(-len(curve) // POINTS)
    parts = [curve[first : first + block] for first in range(0, len(curve), block)]
    return [[part[-1][0], round(statistics.fmean(value for _, value in part), 5)] for part in parts]


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """All runs, seed by seed: machine, configuration, curves of each run, and the summary."""
    runs = []
    for seed in range(options.seeds):
        for weight in options.weights:
            config = configuration(options, weight, seed)
            runs.append({"weight": weight, "seed": seed, **trained(config)})
            miou, loss = 100 * runs[-1]["miou"], runs[-1]["main_loss"][-1][1]
            print(f"seed{seed}_weight{weight:g}: mIoU {miou:.2f}, main loss {loss:.4f}", flush=True)
    tree = config.to_dict()
    for name in SEPARATE:
        section, key = name.split(".")
        del tree[section][key]
    return {"machine": machine(), "data": config.data.name, "config": tree, "runs": runs, "summary": summary(runs)}


# ---- summary ---------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Means and spreads over the seeds for each λ, and differences to λ = 0, seed by seed.

    Every seed has every λ, 0 among them. "mean_loss" is the mean over the run: convergence without a chosen level.
    """
    weights, seeds = sorted({run["weight"] for run in runs}), sorted({run["seed"] for run in runs})
    found = {(run["weight"], run["seed"]): measured(run) for run in runs}
    rows = []
    for weight in weights:
        mine, plain = ([found[w, seed] for seed in seeds] for w in (weight, 0.0))
        row: dict[str, Any] = {"weight": weight}
        for key in ("final_miou", "final_loss", "mean_loss"):
            row[key] = spread([run[key] for run in mine])
            row[f"{key}_difference"] = spread([a[key] - b[key] for a, b in zip(mine, plain, strict=True)])
        rows.append(row)
    return {"seeds": seeds, "weights": rows}


def measured(run: Run) -> dict[str, float]:
    """The numbers of one run that are compared."""
    losses = [value for _, value in run["main_loss"]]
    last = losses[-max(1, round(LAST * len(losses))) :]
    return {"final_miou": run["miou"], "final_loss": statistics.fmean(last), "mean_loss": statistics.fmean(losses)}


def smooth(curve: Curve) -> list[tuple[float, float]]:
    """The mean over the last :data:`SMOOTH` points, from the first point that has as many (all of a shorter curve)."""
    width = min(SMOOTH, len(curve))
    return [
        (curve[end - 1][0], statistics.fmean(value for _, value in curve[end - width : end]))
        for end in range(width, len(curve) + 1)
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The values, one a seed, their mean, extremes, and standard deviation (None of a single one)."""
    deviation = round(statistics.stdev(values), 6) if len(values) > 1 else None
    low, mean, high = (round(number, 6) for number in (min(values), statistics.fmean(values), max(values)))
    return {"mean": mean, "std": deviation, "min": low, "max": high, "values": [round(value, 6) for value in values]}


# ---- command ---------------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[float]:
    """'0,0.4' -> [0.0, 0.4]."""
    return [float(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="options of the training, as in run.max_steps=100")
    parser.add_argument("--root", type=Path, help="CamVid's folder; by default street scenes are drawn")
    parser.add_argument("--weights", type=numbers, default=[0.0, 0.2, 0.4, 0.7, 1.0], help="λ, 0 among them")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, help="folder of the runs; runs/aux_weight_DATA by default")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    if 0 not in options.weights or len(set(options.weights)) < 2 or min(options.weights) < 0:
        parser.error(f"--weights {options.weights} needs 0, to compare with, and at least one positive weight")
    options.out = options.out or ROOT / "runs" / f"aux_weight_{'camvid' if options.root else 'scenes'}"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.root is None:
        write_scenes(options.out / "scenes", train=200, val=60, size=(180, 240))
    results = run_all(options)
    if options.save:
        print(write_json(RESULTS / f"aux_weight_{results['data']}.json", results))
    print(aux_weight.render([{**results, "name": "aux_weight"}]))


if __name__ == "__main__":
    main()
