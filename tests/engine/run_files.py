"""Helpers of the tests: commands, the records in a run's folder, and a full disk."""

from __future__ import annotations

import csv
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from pspnet_fast.data import DATASETS
from pspnet_fast.engine import TrainConfig, TrainedModel, build_model, checkpoint, config_from_dict
from pspnet_fast.engine.commands import app
from pspnet_fast.engine.train import Trainer

MakeConfig = Callable[..., TrainConfig]  # what the fixture make_config gives
train_module = sys.modules[Trainer.__module__]  # pspnet_fast.engine.train is the function

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


def invoke(*arguments: object, columns: int = 400) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": f"{columns}"})


def call(*arguments: object, code: int = 0) -> str:
    """What a command prints, which must end with ``code``."""
    result = invoke(*arguments)
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


def saved_step(folder: str | Path) -> int:
    path = Path(folder) / "last.pt"
    step: int = checkpoint.load(path)["step"] if path.exists() else 0
    return step


def untrained(name: str, **data: object) -> TrainedModel:
    """The smallest network, with random weights, of a data set."""
    info = DATASETS[name].info if name in DATASETS else None
    config = config_from_dict({"data": {"name": name, **data}, "run": {"max_steps": 1}}, TINY)
    info = info or config.data.own.info(name)  # type: ignore[union-attr]
    torch.manual_seed(0)
    model = build_model(config.model, info.num_classes)
    return TrainedModel(model.eval(), config, info, None)


def save_pixels(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """A picture in a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_picture(path: Path, size: tuple[int, int] = (9, 13), seed: int = 0, **options: Any) -> Path:
    """A picture of random colours in a file."""
    return save_pixels(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8), **options)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
