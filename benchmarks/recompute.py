"""What recomputation in backward saves and costs: python -m benchmarks.recompute [--rounds 3]

A training step of PSPNet50 (2 x 3 x 473 x 473, 150 classes) on stock operators and with each `model.checkpoint`: the
variants in turn in one process, peak memory of each in a process of its own. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.case import Call, Place
from benchmarks.measure import in_new_process, interleaved, peak_bytes
from benchmarks.network import Setting, build_training, network
from benchmarks.peers import EAGER, OURS
from pspnet_fast.nn.recompute import RECOMPUTE

SETTING = Setting(layers=50, classes=150, batch=2, size=(473, 473), place=Place())
VARIANTS = (EAGER, *RECOMPUTE)


def build(variant: str) -> Call:
    """A step of the stock network, or of this package's with a value of `recompute`."""
    if variant == EAGER:
        return build_training(SETTING, EAGER)
    net = network(OURS, SETTING)
    net.recompute = variant  # type: ignore[assignment]
    return build_training(SETTING, OURS, net)


def peak(variant: str) -> int:
    return peak_bytes(partial(build, variant), "cpu")


def table(times: dict[str, list[float]], peaks: dict[str, int]) -> str:
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = ["| a training step | time | time / none | peak memory | memory / stock |", "|:---|---:|---:|---:|---:|"]
    for name in VARIANTS:
        label = "stock PyTorch, eager" if name == EAGER else f"`model.checkpoint={name}`"
        lines.append(
            f"| {label} | {medians[name] / 1000:.2f} s | {medians[name] / medians['none']:.2f} "
            f"| {peaks[name] / 2**20:.0f} MB | {peaks[name] / peaks[EAGER]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    peaks = {name: in_new_process(peak, name) for name in VARIANTS}
    calls: dict[str, Callable[[], object]] = {name: build(name) for name in VARIANTS}
    print(table(interleaved(calls, rounds), peaks))


if __name__ == "__main__":
    main()
