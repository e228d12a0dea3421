"""What recomputation in backward saves and costs, with each `model.checkpoint` and in the stock network.

    python -m benchmarks.recompute          count tensors, measure memory and time, print the table
    python -m benchmarks.recompute --save   and keep the result

A training step of PSPNet50 (2 x 3 x 473 x 473, 150 classes) in float32: its time, the variants in turn in one process,
and its peak memory, each in a process of its own. The largest batches are those of bfloat16 autocast, as GPUs are
trained: they follow from the bytes of a step's tensors, which are counted without computing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.case import Call, Place
from benchmarks.measure import in_new_process, interleaved, peak_bytes, tensor_bytes, timings
from benchmarks.network import Setting, build_training, end_to_end, network
from benchmarks.peers import EAGER, OURS
from benchmarks.results import RESULTS, ResultFile
from pspnet_fast.nn.resnet import RECOMPUTE

SETTING = Setting(layers=50, classes=150, batch=2, size=(473, 473), place=Place())
HALF = replace(SETTING, place=Place("cpu", torch.bfloat16, "channels_last"))
COUNTED = (2, 16)  # images, for the line of the largest batches
ROUNDS = 3
VARIANTS = (EAGER, *RECOMPUTE)


def build(setting: Setting, variant: str) -> Call:
    """A step of the stock network, or of this package's with a value of `recompute`."""
    if variant == EAGER:
        return build_training(setting, EAGER)
    net = network(OURS, setting)
    net.recompute = variant
    return build_training(setting, OURS, net)


def measured() -> dict[str, Any]:
    """The bytes of a step's tensors, the largest batches in bfloat16, peak memory, and times."""
    at = {
        name: {str(size): tensor_bytes(partial(build, replace(HALF, batch=size), name)) for size in COUNTED}
        for name in VARIANTS
    }
    return {
        "tensor_bytes": {name: tensor_bytes(partial(build, SETTING, name)) for name in VARIANTS},
        "tensor_bytes_at": at,
        "largest_batch": end_to_end(HALF, "training", COUNTED[1]).batches.largest(at),
        "peak_bytes": {name: in_new_process(peak_bytes, partial(build, SETTING, name), "cpu") for name in VARIANTS},
        "milliseconds": timings(interleaved({name: build(SETTING, name) for name in VARIANTS}, ROUNDS)),
    }


def main() -> None:
    from benchmarks.render_networks import recomputed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="keep the row in benchmarks/results")
    options = parser.parse_args()
    row = {"case": f"recompute/{SETTING.shape}", "shape": SETTING.shape, "failures": {}, **measured()}
    file = ResultFile(RESULTS / "recompute_cpu.json")
    print(recomputed({"name": "recompute_cpu", "rows": [{**row, "machine": 0}], "machines": [file.now]}))
    if options.save:
        file.add(row)


if __name__ == "__main__":
    main()
