"""Result files as the benchmarks write them, with round numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = {
    "device": "A CPU, 2 cores", "threads": 2, "python": "3.11.7", "torch": "2.99.0", "commit": "abc123",
    "date": "2026-01-02",
}  # fmt: skip
WHERE = "A CPU, 2 cores, 2 threads, torch 2.99.0, Python 3.11.7, commit abc123, 2026-01-02."
CEILINGS = {"copy": 40.0, "read": 30.0, "float32": 200.0, "bfloat16": 800.0}


def timing(median: float) -> dict[str, float]:
    return {"median": median, "p20": 0.9 * median, "p80": 1.2 * median, "rounds": 5}


def timings(**medians: float) -> dict[str, dict[str, float]]:
    return {name.replace("ours", "pspnet_fast cpu"): timing(median) for name, median in medians.items()}


def operator_row(operator: str, **changes: Any) -> dict[str, Any]:
    """A row of benchmarks/operators.py: eager 118.4 ms, torch.compile 2215.6 ms, this package 1.414 ms."""
    return {
        "case": "a", "operator": operator, "shape": "2x19 -> 473x473", "dtype": "float32", "layout": "NCHW",
        "direction": "forward + backward", "allocator": "default", "ours": "pspnet_fast cpu", "failures": {},
        "milliseconds": timings(eager=118.4, compile=2215.6, ours=1.414),
        "peak_bytes": {"eager": 129_600_000, "compile": 5_000_000, "pspnet_fast cpu": 2_345_000},
        "floor": {"bytes": 5_000_000, "flops": 10**8, "rate": "float32", "memory_milliseconds": 0.125,
                  "arithmetic_milliseconds": 0.5},
        "floor_reached": {"eager": 0.0042, "compile": 0.0002, "pspnet_fast cpu": 0.354}, "ceilings": CEILINGS,
        **changes,
    }  # fmt: skip


def training_step_row() -> dict[str, Any]:
    medians = {"eager": 6000.0, "compile": 15000.0, "pspnet_fast": 3000.0, "pspnet_fast+compile": 2500.0}
    return operator_row(
        "training_step",
        shape="PSPNet50, 2x3x473x473, 19 classes",
        ours="pspnet_fast",
        milliseconds={name: timing(time) for name, time in medians.items()},
        ratio={name: time / 3000 for name, time in medians.items()},
        peak_bytes={"eager": 4_000_400_000, "compile": 3_500_000_000, "pspnet_fast": 2_000_000_000},
    )


def scaling_row(value: int, *, axis: str = "classes", operator: str = "dual_cross_entropy") -> dict[str, Any]:
    return {
        "axis": axis, "value": value, "operator": operator, "shape": f"2x{value} -> 473x473", "dtype": "float32",
        "layout": "NCHW", "threads": 2, "skipped": {}, "failures": {}, "ours": "pspnet_fast",
        "milliseconds": {"eager": timing(7.0 * value), "pspnet_fast": timing(0.1 * value)},
        "peak_bytes": {"eager": 10**7 * value, "pspnet_fast": 10**5 * value},
    }  # fmt: skip


def end_to_end_row() -> dict[str, Any]:
    peers = {"eager": 3400.0, "compile": 3300.0, "pspnet_fast": 2400.0}
    return {
        "operator": "training_step", "shape": "PSPNet50, 2x3x321x321, 19 classes", "dtype": "float32",
        "layout": "NCHW", "mode": "training", "layers": 50, "classes": 19, "size": 321, "batch": 2, "failures": {},
        "memory_batches": [2, 4], "milliseconds": {peer: timing(time) for peer, time in peers.items()},
        "images_per_second": {peer: float(f"{2000 / time:.4g}") for peer, time in peers.items()},
        "peak_bytes": {"eager": 1_240_000_000, "pspnet_fast": 1_010_000_000},
        "largest_batch": {"8": {"eager": 12, "pspnet_fast": 15}, "24": {"eager": 39, "pspnet_fast": None}},
    }  # fmt: skip


def agreement_row(dtype: str = "torch.float32", *, miou: bool = True) -> dict[str, Any]:
    losses = {"plain": [3.0, 2.0, 1.0], "fused": [3.0, 2.0, 1.5], "control": [3.0, 2.25, 1.0]}
    row = {
        "data": "camvid", "layers": 18, "crop": 129, "batch": 4, "lr": 0.05, "steps": 3, "dtype": dtype,
        "largest_difference": {"fused": 0.5, "control": 0.25}, "loss": losses,
    }  # fmt: skip
    measured = {"steps": [2, 3], "plain": [0.1, 0.2], "fused": [0.1, 0.2101], "control": [0.1, 0.19]}
    return {**row, "val_images": 25, "miou": measured} if miou else row


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": MACHINE, "rows": rows}))
    return path
