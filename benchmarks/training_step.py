"""PSPNet50's training step: stock and fused, each eager and under torch.compile.

Times are interleaved, peak memory is measured in fresh processes.

python -m benchmarks.training_step                     the table of the README (about 15 minutes on two cores)
python -m benchmarks.training_step --size 97 --rounds 1 --no-save      a look
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.case import COMPILE, EAGER, OURS, OURS_COMPILED
from benchmarks.measure import as_row, in_fresh_process, interleaved, peak_bytes, save
from benchmarks.network import Setting, training_step

VARIANTS = (EAGER, COMPILE, OURS, OURS_COMPILED)


def setting(options: argparse.Namespace, classes: int) -> Setting:
    """The options as the network benchmarks take them."""
    return Setting(
        layers=options.layers,
        classes=classes,
        batch=options.batch,
        size=(options.size, options.size),
        layout="channels_last" if options.channels_last else "NCHW",
        dtype=torch.bfloat16 if options.bf16 else torch.float32,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def peak_megabytes(variant: str, options: argparse.Namespace, classes: int) -> float:
    """Peak memory of one step over model, images and labels, in a fresh process."""
    arguments = ["--peak", variant, "--classes", str(classes), "--size", str(options.size)]
    arguments += ["--batch", str(options.batch), "--layers", str(options.layers)]
    arguments += ["--channels-last"] * options.channels_last + ["--bf16"] * options.bf16
    return round(in_fresh_process("benchmarks.training_step", *arguments) / 2**20, 1)


def measure(options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """One row of the results."""
    config = setting(options, classes)
    steps = {name: training_step(name, config) for name in options.variants}
    timings = interleaved(steps, options.rounds, config.device)
    losses = {name: float(step()[0]) for name, step in steps.items()}
    del steps
    peaks = {name: peak_megabytes(name, options, classes) for name in options.variants}
    labels = {key: getattr(options, key) for key in ("layers", "batch", "size", "channels_last", "bf16")}
    return as_row(timings, **labels, classes=classes, peak_megabytes=peaks, loss=losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak_bytes(lambda: training_step(options.peak, setting(options, options.classes[0])))))
        return

    rows = []
    for classes in options.classes:
        row = measure(options, classes)
        rows.append(row)
        ours = row["milliseconds"].get(OURS, {"median": float("nan")})["median"]
        for name, timing in row["milliseconds"].items():
            print(
                f"{classes:>4} classes  {name:<20} {timing['median']:>9.1f} ms "
                f"({timing['p20']:.1f} to {timing['p80']:.1f})  {timing['median'] / ours:5.2f}x  "
                f"peak {row['peak_megabytes'][name]:>8.1f} MB  loss {row['loss'][name]:.6f}",
                flush=True,
            )
    if not options.no_save:
        layout = "channels_last" if options.channels_last else "nchw"
        precision = "bf16" if options.bf16 else "fp32"
        where = "gpu" if torch.cuda.is_available() else "cpu"
        print(save(f"training_step_{where}_r{options.layers}_{options.size}_{layout}_{precision}", rows))


if __name__ == "__main__":
    main()
