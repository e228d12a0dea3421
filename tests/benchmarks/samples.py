"""Cases and result files with round numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.case import Case, Floor
from benchmarks.results import write_json

MACHINE = {
    "device": "A CPU, 2 cores", "threads": 2, "python": "3.11.7", "torch": "2.99.0", "commit": "abc123",
    "date": "2026-01-02",
}  # fmt: skip
RATES = {"copy": 100.0, "float32": 1000.0, "bfloat16": 4000.0}
LABELS = {
    "configuration": "VOC 473", "shape": "3x4", "dtype": "float32", "layout": "NCHW", "direction": "forward",
    "arrangement": "semseg",
}  # fmt: skip


def fake_case(peers: Mapping[str, Tensor | Exception], **options: Any) -> Case:
    """A case whose peers return the given tensors, or raise the given exceptions."""

    def build(peer: str) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            result = peers[peer]
            if isinstance(result, Exception):
                raise result
            return (result,)

        return call

    fixed = {"operator": "pyramid_concat", "labels": LABELS, "device": "cpu", "floor": Floor(10**6, 10**6)}
    return Case(peers=tuple(peers), build=build, tolerance=1e-3, **{**fixed, **options})


# ---- rows ------------------------------------------------------------------------------------------------------------


def timing(median: float) -> dict[str, float]:
    return {"median": median, "p20": 0.9 * median, "p80": 1.2 * median, "rounds": 5}


def timings(**medians: float) -> dict[str, dict[str, float]]:
    return {name.replace("ours", "pspnet_fast cpu"): timing(median) for name, median in medians.items()}


def operator_row(operator: str, **changes: Any) -> dict[str, Any]:
    """A row: eager 118.4 ms, torch.compile 2215.6 ms, this package 1.414 ms."""
    return {
        "case": "a", "operator": operator, "shape": "2x19 -> 473x473", "dtype": "float32", "layout": "NCHW",
        "direction": "forward + backward", "ours": "pspnet_fast cpu", "failures": {}, "machine": 0,
        "milliseconds": timings(eager=118.4, compile=2215.6, ours=1.414),
        "peak_bytes": {"eager": 129_600_000, "compile": 5_000_000, "pspnet_fast cpu": 2_345_000},
        "floor": {"bytes": 5_000_000, "flops": 10**8, "rate": "float32", "memory_milliseconds": 0.125,
                  "arithmetic_milliseconds": 0.5},
        "floor_reached": {"eager": 0.0042, "compile": 0.0002, "pspnet_fast cpu": 0.354},
        "rates": RATES, **changes,
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
    return operator_row(
        operator,
        axis=axis,
        value=value,
        shape=f"2x{value} -> 473x473",
        skipped={},
        ours="pspnet_fast",
        milliseconds={"eager": timing(7.0 * value), "pspnet_fast": timing(0.1 * value)},
        peak_bytes={"eager": 10**7 * value, "pspnet_fast": 10**5 * value},
    )


def training_row(dtype: str = "float32", *, miou: bool = True) -> dict[str, Any]:
    losses = {"plain": [3.0, 2.0, 1.0], "fused": [3.0, 2.0, 1.5], "control": [3.0, 2.25, 1.0]}
    row = {
        "data": "camvid", "layers": 18, "crop": 129, "batch": 4, "lr": 0.05, "steps": 3, "dtype": dtype, "machine": 0,
        "largest_difference": {"fused": 0.5, "control": 0.25}, "loss": losses, "failures": {},
    }  # fmt: skip
    measured = {"steps": [2, 3], "plain": [0.1, 0.2], "fused": [0.1, 0.2101], "control": [0.1, 0.19]}
    return {**row, "val_images": 25, "miou": measured} if miou else row


def write(folder: Path, name: str, *rows: dict[str, Any], machines: tuple[Any, ...] = (MACHINE,)) -> Path:
    return write_json(folder / f"{name}.json", {"machines": list(machines), "rows": list(rows)})
