"""Helpers of the tests: commands, the records in a run's folder, and a full disk."""

from __future__ import annotations

import csv
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from typer.testing import CliRunner

from pspnet_fast.engine import TrainConfig, checkpoint
from pspnet_fast.engine.commands import app

TINY = ("model.backbone=timm/test_resnet", "data.crop=33")  # 0.6 million parameters
BUILT_IN = ("model.backbone=null", "model.layers=18", "data.crop=65")
SHORT = (
    "data.crop=65",
    "data.workers=0",
    "optim.batch_size=2",
    "optim.schedule_by=steps",
    "run.max_steps=2",
    "run.pictures=0",
)


def call(*arguments: object, code: int = 0) -> str:
    """What a command prints, which must end with ``code``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.output


def refused(*arguments: object) -> str:
    """What a command prints, which must fail with one framed message."""
    output = call(*arguments, code=2)
    assert "pspnet-fast: error" in output
    assert "Traceback" not in output
    return output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = checkpoint.load(folder / "last.pt")["model"]
    return state


def measured(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the machine."""
    machine = {"minutes", "images_per_second", "peak_memory_mb"}
    return [{k: v for k, v in row.items() if k not in machine} for row in rows(folder / "metrics.csv")]


def last_checkpoint(config: TrainConfig) -> Path:
    return Path(str(config.run.folder)) / "last.pt"


def saved_step(folder: Path) -> int:
    path = folder / "last.pt"
    step: int = checkpoint.load(path)["step"] if path.exists() else 0
    return step


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
