"""Do fused and plain operators train alike? The same seed on both, step by step: losses, time, memory, mIoU.

    python -m benchmarks.compare_training --root CAMVID --save       a folder in CamVid's format
    python -m benchmarks.compare_training                            drawn street scenes, no data needed
    python -m benchmarks.compare_training --steps 2 --training-steps 4 model.layers=18     any option of the training

In float64 rounding is too small to be amplified to anything within ``--steps``, so there the losses themselves must
agree; in the precision of the training, over ``--training-steps``, the mIoU on validation images shows whether one
learns less than the other (pspnet_fast/demo/compare_training.py). About 10 minutes on two cores, half of it in float64.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ResultFile
from pspnet_fast.data import write_scenes
from pspnet_fast.demo.compare_training import CONTROL, FUSED, PLAIN, Run, compare
from pspnet_fast.engine import TrainConfig, load_config

SCENES = {"train": 160, "val": 24, "size": (144, 192)}
AGREES = 1e-6  # the largest difference of a loss in float64; it is 1e-14 to 1e-11 where nothing is wrong
VALIDATE_EVERY = 50  # steps; in float64 at the end alone
SETTINGS = (
    "data.crop=129",
    "data.workers=0",
    "optim.batch_size=4",
    "optim.class_weights=none",
    "optim.schedule_by=steps",
    "run.amp=none",
    "run.max_minutes=null",
    "run.validate_every=0",
    "run.save_every_seconds=1e9",
    "run.pictures=0",
)


def configuration(options: argparse.Namespace, root: Path, steps: int, amp: str) -> TrainConfig:
    """camvid_r18's recipe over a number of steps, with the overrides of the command line."""
    first = [f"data.name={options.data}", f"data.root={root}", *SETTINGS]
    last = [f"run.max_steps={steps}", f"run.save_every_steps={steps + 1}", f"run.amp={amp}"]
    return load_config("camvid_r18", [*first, *options.overrides, *last])


def row_of(options: argparse.Namespace, config: TrainConfig, dtype: str, runs: Mapping[str, Run]) -> dict[str, Any]:
    """What is kept of a comparison."""
    images = config.optim.batch_size
    row = {
        "case": f"{options.data}/{dtype}",
        "data": options.data,
        "layers": config.model.layers,
        "crop": config.data.crop,
        "batch": images,
        "lr": config.optim.lr,
        "steps": len(runs[PLAIN].losses),
        "dtype": dtype,
        "largest_difference": {name: runs[name].largest_difference(runs[PLAIN]) for name in (FUSED, CONTROL)},
        "loss": {name: run.losses for name, run in runs.items()},
        "images_per_second": {name: round(images / run.seconds, 2) for name, run in runs.items()},
        "peak_bytes": {name: run.peak_memory for name, run in runs.items()},
        "failures": {},
    }
    if runs[PLAIN].miou:
        values = {name: [value for _, value in run.miou] for name, run in runs.items()}
        row |= {"val_images": options.val_images, "miou": {"steps": [step for step, _ in runs[PLAIN].miou], **values}}
    if dtype == "float64" and not row["largest_difference"][FUSED] < AGREES:  # NaN must fail
        row["failures"] = {FUSED: f"losses differ by {row['largest_difference'][FUSED]}, allowed {AGREES}"}
    return row


def compare_all(options: argparse.Namespace, root: Path, folder: Path) -> list[dict[str, Any]]:
    """Compare in float64, then in the precision of the training; each row is kept as it comes."""
    file = ResultFile(options.save / f"training_{options.data}.json") if options.save else None
    plans = [("float64", options.steps, options.steps, "none")]
    plans += [("float32", options.training_steps, VALIDATE_EVERY, options.amp)]
    rows = []
    for dtype, steps, every, amp in (plan for plan in plans if plan[1] > 0):
        config = configuration(options, root, steps, amp)
        details = {"dtype": dtype, "validate_every": every, "val_images": options.val_images}
        runs = compare(config, folder / dtype, steps, **details, progress=partial(print, flush=True))
        rows.append(row_of(options, config, dtype if amp == "none" else amp, runs))
        if file is not None:
            file.add(rows[-1])
            print(file.path)
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="options of the training, as in model.layers=50")
    parser.add_argument("--root", type=Path, help="folder of the data set; without it scenes are drawn")
    parser.add_argument("--data", help="its format; camvid, or scenes where there is no --root")
    parser.add_argument("--steps", type=int, default=15, help="in float64; 0 leaves it out")
    parser.add_argument("--training-steps", type=int, default=200, help="in the precision of --amp; 0 leaves it out")
    parser.add_argument("--amp", choices=("none", "bf16", "fp16"), default="none", help="none: train in float32")
    parser.add_argument("--val-images", type=int, default=25, help="at most, at even distances through the split")
    parser.add_argument("--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help="keep the result")
    options = parser.parse_args(arguments)
    if options.root is None and options.data not in (None, "scenes"):
        parser.error(f"--data {options.data} needs its folder: --root")
    options.data = options.data or ("scenes" if options.root is None else "camvid")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or write_scenes(Path(folder) / "scenes", **SCENES)  # type: ignore[arg-type]
        rows = compare_all(options, root, Path(folder))
    for row in rows:
        miou = {name: values[-1] for name, values in row.get("miou", {}).items() if name != "steps"}
        print(f"{row['dtype']}: largest difference over {row['steps']} steps {row['largest_difference']}, mIoU {miou}")
    if wrong := [reason for row in rows for reason in row["failures"].values()]:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
