"""A tiny data set on disk, and configurations that train on it in seconds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchvision", reason="the engine needs the extra [train]")
pytest.importorskip("typer", reason="the engine needs the extra [train]")
pytest.importorskip("pydantic", reason="the engine needs the extra [train]")
pytest.importorskip("torchmetrics", reason="the engine needs the extra [train]")

from run_files import SHORT, TINY, MakeConfig, call

from pspnet_fast.data import write_scenes
from pspnet_fast.data.classes import CAMVID
from pspnet_fast.engine import TrainConfig, config_from_dict


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name resembles Rich's markup."""
    return write_scenes(tmp_path_factory.mktemp("data") / "[/red]scenes[bold]", train=8, val=3, size=(64, 96))


@pytest.fixture(scope="session")
def own_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 scenes as people keep them, photos/NAME.jpg and masks/NAME.png: in colours, black where a pixel does not
    count ("colors"), and in 16-bit indices that begin at 1000 and end with 65535 ("offset").
    """
    root = tmp_path_factory.mktemp("own")
    write_scenes(root / "scenes", train=12, val=1, size=(64, 96))
    palette = np.zeros((256, 3), np.uint8)
    palette[:11] = CAMVID.palette
    for kind in ("colors", "offset"):
        shutil.copytree(root / "scenes/images/train", root / kind / "photos")
        (root / kind / "masks").mkdir()
        for path in sorted((root / "scenes/labels/train").iterdir()):
            label = np.array(Image.open(path))
            offset = np.where(label < 11, label.astype(np.uint16) + 1000, 65535).astype(np.uint16)
            Image.fromarray(palette[label] if kind == "colors" else offset).save(root / kind / "masks" / path.name)
    return root


@pytest.fixture(scope="session")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, made by the command line itself; its name resembles markup, too."""
    folder = tmp_path_factory.mktemp("runs") / "[link]tiny[/]"
    output = call("train", "camvid_r18", *SHORT, "--data", "scenes", "--root", scenes, "--folder", folder)
    for part in ("mean", "images/s", f"last.pt are in {folder}"):
        assert part in output
    assert f"{folder}: step 2" in re.sub(r"\n *", "", output)  # the table's title is wrapped
    return folder


@pytest.fixture
def make_config(scenes: Path, tmp_path: Path) -> MakeConfig:
    """A run of 6 steps of 2 crops, of the smallest network; changes are overrides like ``run.max_steps=3``."""

    def make(*changes: str, folder: str = "run") -> TrainConfig:
        tree = {
            "data": {"name": "scenes", "root": str(scenes), "workers": 0},
            "optim": {"lr": 0.01, "batch_size": 2},
            "run": {
                "folder": str(tmp_path / folder),
                "max_steps": 6,
                "device": "cpu",
                "amp": "none",
                "validate_every": 0,
                "pictures": 0,
            },
        }
        return config_from_dict(tree, (*TINY, *changes))

    return make
