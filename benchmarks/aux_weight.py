"""What does the auxiliary loss bring? The same network trained with several weights λ of it, over several seeds.

    python -m benchmarks.aux_weight                              street scenes drawn here, no data needed
    python -m benchmarks.aux_weight --root CAMVID --save         keep the result, and draw docs/aux_weight.svg
    python -m benchmarks.aux_weight --plot                       draw it again from the result kept

The claim (Zhao et al. 2017, sections 3.3 and 5.1.2): an auxiliary loss on layer3, added with λ = 0.4, helps to learn
the deep network. The runs of a seed differ in λ alone: initial weights, crops, their order and dropout are the same, so
that what is compared is pairs. Runs go seed by seed; each leaves its result in a file of its own when it ends, and a
command that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from benchmarks.aux_weight_plot import draw
from benchmarks.aux_weight_report import sentences, summary, table
from benchmarks.measure import RESULTS, ROOT, write_json
from benchmarks.provenance import machine
from pspnet_fast.data import write_scenes
from pspnet_fast.engine import TrainConfig, evaluate, load_config
from pspnet_fast.engine.config_io import changed_keys
from pspnet_fast.engine.distributed import join_world
from pspnet_fast.engine.evaluate import eval_loader
from pspnet_fast.engine.train import Trainer, chosen_backend, open_split

PICTURES = {name: ROOT / "docs" / f"aux_weight{end}.svg" for name, end in (("camvid", ""), ("scenes", "_scenes"))}
POINTS = 100  # of a loss curve; each is the mean over as many steps as it takes


def configuration(options: argparse.Namespace, weight: float, seed: int, folder: Path) -> TrainConfig:
    """The training of one run: camvid_r18's recipe, its schedule over a number of steps."""
    tree = {
        "data.name": "scenes" if options.scenes else "camvid",
        "data.root": options.root,
        "data.crop": options.size,
        "data.workers": options.workers,
        "model.layers": options.layers,
        "optim.aux_weight": weight,
        "optim.batch_size": options.batch,
        "optim.schedule_by": "steps",
        "run.max_minutes": "null",
        "run.max_steps": options.steps,
        "run.seed": seed,
        "run.folder": folder,
        "run.amp": options.amp,
        "run.pictures": 0,
    }
    return load_config("camvid_r18", [f"{key}={value}" for key, value in tree.items()])


class MeasuredTrainer(Trainer):
    """Validates on every ``every``-th image of the split while it trains, about ``validations`` times."""

    def watch(self, every: int, validations: int) -> None:
        config = self.config
        subset = Subset(self.val_loader.dataset, range(0, len(self.val_loader.dataset), every))  # type: ignore[arg-type]
        self.val_loader = eval_loader(subset, config.eval, workers=config.data.workers, world=self.world)
        epochs = (config.run.max_steps or 1) / self.steps_per_epoch
        config.run.validate_every = max(1, round(epochs / validations))


def trained(config: TrainConfig, every: int, validations: int) -> dict[str, Any]:
    """Train, or go on; the curves, and the metrics of the last weights over the whole validation split."""
    started, folder = time.monotonic(), Path(config.run.folder or "")
    with join_world("auto") as world, chosen_backend(config.run.backend):
        trainer = MeasuredTrainer(config, folder, world, resume=True, started=started)
        try:
            trainer.watch(every, validations)
            result = trainer.run()
        finally:
            trainer.log.close()
        val_set = open_split(config.data, config.data.val_split)
        # The last weights, whichever were the best: choosing on the images that are then counted would flatter.
        metrics = evaluate(
            trainer.state.model, val_set, config.eval, amp=config.run.amp, workers=config.data.workers, world=world
        )
    return {
        "main_loss": loss_curve(folder / "losses.csv", config.run.max_steps or 1),
        "subset_miou": [[int(row["step"]), float(row["miou"])] for row in read_table(folder / "metrics.csv")],
        "miou": round(metrics.miou, 6),
        "accuracy": round(metrics.accuracy, 6),
        "iou": {name: row["iou"] for name, row in metrics.to_dict()["classes"].items()},
        "minutes": round(result.minutes, 2),
    }


def loss_curve(path: Path, steps: int) -> list[list[float]]:
    """[last step, mean main loss] of consecutive blocks of steps, at most :data:`POINTS` of them."""
    rows = read_table(path)
    block = -(-steps // POINTS)
    parts = [rows[first : first + block] for first in range(0, len(rows), block)]
    return [
        [int(part[-1]["step"]), round(sum(float(row["main_loss"]) for row in part) / len(part), 5)] for part in parts
    ]


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all runs, seed by seed; those that are in the folder already are read from there.

    Raises:
        ValueError: the folder holds a run of another setting.
    """
    rows = []
    for seed in range(options.seeds):
        for weight in options.weights:
            name = f"seed{seed}_weight{weight:g}"
            folder, done = options.out / name, options.out / f"{name}.json"
            config = configuration(options, weight, seed, folder)
            setting = {**config.to_dict(), "validation": {"every": options.val_every, "times": options.validations}}
            if done.is_file():
                row = json.loads(done.read_text(encoding="utf-8"))
                if changes := changed_keys(row["setting"], setting):
                    raise ValueError(f"{done} is of another setting ({'; '.join(changes)}): choose another --out")
            else:
                found = trained(config, options.val_every, options.validations)
                row = {"weight": weight, "seed": seed, **found, "machine": machine(), "setting": setting}
                write_json(done, row)
                shutil.rmtree(folder)  # its checkpoints are of no further use
            rows.append(row)
            print(f"{name}: mIoU {100 * row['miou']:.2f}, main loss {row['main_loss'][-1][1]:.4f}, "
                  f"{row['minutes']:.1f} minutes", flush=True)  # fmt: skip
    return rows


def content(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is kept: machine, configuration, curves of each run, and the summary."""
    config = rows[-1]["setting"]
    sections = {key: dict(config[key]) for key in ("data", "model", "optim", "eval", "run", "validation")}
    # Of one machine, of one run, or (how often it validates) set by the trainer.
    for name in ("data.root", "run.folder", "run.seed", "run.validate_every", "optim.aux_weight"):
        section, key = name.split(".")
        del sections[section][key]
    runs = [{key: value for key, value in row.items() if key not in ("machine", "setting")} for row in rows]
    return {
        "machine": rows[-1]["machine"],
        "data": config["data"]["name"],
        "config": sections,
        "runs": runs,
        "summary": summary(runs, options.loss_levels, options.miou_levels),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="CamVid's folder; by default street scenes are drawn")
    parser.add_argument("--weights", type=numbers, default=[0.0, 0.2, 0.4, 0.7, 1.0], help="λ, 0 among them")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--size", type=int, default=97, help="of the crops")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--amp", choices=("none", "bf16", "fp16"), default="bf16")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images")
    parser.add_argument("--validations", type=int, default=8, help="how often, about, mIoU is measured in a run")
    parser.add_argument("--val-every", type=int, default=10, help="on each such image of the split; all at the end")
    parser.add_argument("--loss-levels", type=numbers, default=[], help="main losses whose first step is counted")
    parser.add_argument("--miou-levels", type=numbers, default=[], help="mIoU, 0 to 1, likewise")
    parser.add_argument("--out", type=Path, help="state of the runs; runs/aux_weight_DATA by default")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results and the picture in docs")
    parser.add_argument("--plot", action="store_true", help="train nothing; draw and tell what --save has kept")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps", "validations", "val_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if 0 not in options.weights or len(set(options.weights)) < 2 or min(options.weights) < 0:
        parser.error(f"--weights {options.weights} needs 0, to compare with, and at least one positive weight")
    options.scenes = options.root is None
    options.out = options.out or ROOT / "runs" / f"aux_weight_{'scenes' if options.scenes else 'camvid'}"
    return options


def numbers(text: str) -> list[float]:
    """'0,0.4' -> [0.0, 0.4]."""
    return [float(part) for part in text.split(",")]


def tell(results: dict[str, Any], *, picture: bool) -> None:
    """Print what came out, and draw it."""
    print(table(results))
    print(sentences(results))
    if picture:
        print(draw(results, PICTURES[results["data"]]))


def main() -> None:
    options = parse()
    if options.plot:
        for path in sorted(RESULTS.glob("aux_weight_*.json")):
            tell(json.loads(path.read_text(encoding="utf-8")), picture=True)
        return
    if options.scenes:
        options.root = write_scenes(options.out / "scenes", train=200, val=60, size=(180, 240))
    results = content(options, run_all(options))
    if options.save:
        print(write_json(RESULTS / f"aux_weight_{results['data']}.json", results))
    tell(results, picture=options.save)


if __name__ == "__main__":
    main()
