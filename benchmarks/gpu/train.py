"""Section train: do fused and plain operators train alike on this device?

First some steps in float64, where rounding is too small to matter and the losses themselves must agree
(benchmarks/agreement.py); then a short training of both from one seed, with its loss curves and mIoU.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import agreement
from benchmarks.gpu.section import Findings
from pspnet_fast.data import write_scenes
from pspnet_fast.engine import TrainConfig, config_from_dict, train

ROADS = {"plain": "reference", "fused": "auto"}
AGREES = 1e-6  # the largest difference of a loss in float64; it is 1e-12 to 1e-11 where nothing is wrong


def run(findings: Findings) -> None:
    """The comparison in float64, then the training of both roads."""
    options = findings.options
    small = options.device == "cpu" or options.quick
    with tempfile.TemporaryDirectory() as folder:
        name, root = ("camvid", options.camvid) if options.camvid else ("scenes", Path(folder) / "scenes")
        if name == "scenes":
            counts = (
                {"train": 8, "val": 2, "size": (72, 96)} if small else {"train": 200, "val": 40, "size": (288, 384)}
            )
            print(f"drawing {counts['train']} + {counts['val']} street scenes", flush=True)
            write_scenes(root, **counts)  # type: ignore[arg-type]

        row = agreement.compare(agreement_options(name, root, small=small), torch.float64)
        findings.add(data=name, float64=row)
        if not row["largest_difference"]["fused"] < AGREES:  # a NaN must fail
            findings.problem(f"float64 losses differ by {row['largest_difference']['fused']}, allowed {AGREES}")

        roads: dict[str, Any] = {}
        for road, backend in ROADS.items():
            config = configuration(name, root, Path(folder) / road, backend, options.device, small=small)
            roads[road] = trained(config, Path(folder) / road)
            findings.add(roads=roads)
            print(f"{road}: last loss {roads[road]['loss'][-1]:.4f}, mIoU {roads[road]['miou']:.4f}", flush=True)
            if not math.isfinite(roads[road]["miou"]):
                findings.problem(f"{road}: mIoU is {roads[road]['miou']}")


def agreement_options(name: str, root: Path, *, small: bool) -> argparse.Namespace:
    """A few steps in lockstep, for :func:`benchmarks.agreement.compare`."""
    size = (
        {"layers": 18, "crop": 65, "batch": 2, "steps": 2}
        if small
        else {"layers": 50, "crop": 129, "batch": 4, "steps": 20}
    )
    return argparse.Namespace(data=name, root=root, lr=0.02, warmup=5, **size)


def configuration(name: str, root: Path, folder: Path, backend: str, device: str, *, small: bool) -> TrainConfig:
    """A short training; the same seed gives both roads the same weights, crops and dropout."""
    tree = {
        "data": {"name": name, "root": str(root), "crop": 65 if small else 257, "workers": 0 if small else 6,
                 "scale": [0.75, 1.5]},
        "model": {"layers": 18 if small else 50},
        "optim": {"lr": 0.02, "head_lr_ratio": 1.0, "batch_size": 4 if small else 16, "warmup_steps": 20,
                  "class_weights": "frequency", "class_weight_power": 0.5},
        "run": {"folder": str(folder), "max_steps": 4 if small else 400, "validate_every": 0, "pictures": 0,
                "amp": "none" if device == "cpu" else "bf16", "device": device, "backend": backend},
    }  # fmt: skip
    return config_from_dict(tree, source="benchmarks.gpu")


def trained(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train; the loss of every step, the closing mIoU, speed and peak memory."""
    result = train(config)
    with (folder / "losses.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return {
        "loss": losses,
        "miou": result.metrics.miou if result.metrics else math.nan,
        "images_per_second": round(result.images_per_second, 2),
        "peak_bytes": result.peak_memory,
    }
