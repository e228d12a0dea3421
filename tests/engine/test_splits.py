"""The data sets of a configuration: messages name its keys, and its reading options reach the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet_fast.data import DatasetError
from pspnet_fast.engine import ConfigError, config_from_dict
from pspnet_fast.engine.datasets import open_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.fromarray(np.array([[0.0, 0.5], [1.0, 2.0]], np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.tif a.png")
    return tmp_path


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 2}, ConfigError, "data.{key} is not set"),
        ({"{key}": "{root}/list.txt"}, ConfigError, "data.classes is not set"),
        ({"{key}": "{root}/none.txt", "classes": 2}, DatasetError, "data.{key}: {root}/none.txt: list file not found"),
        (
            {"name": "voc", "{key}": "{root}/list.txt"},
            ConfigError,
            "data.{key} = {root}/list.txt is for",
        ),
        ({"name": "voc", "classes": 2}, ConfigError, "data.classes = 2 is for data.name=list"),
    ],
)
def test_messages_name_the_key(
    root: Path, training: bool, options: dict[str, object], error: type[Exception], message: str
) -> None:
    places = {"key": "train_list" if training else "val_list", "root": root}
    data = {"name": "list", "root": str(root)}
    data |= {
        key.format(**places): value.format(**places) if isinstance(value, str) else value
        for key, value in options.items()
    }
    config = config_from_dict({"data": data, "run": {"max_steps": 1}})
    with pytest.raises(error) as raised:
        open_split(config.data, "train", training=training)
    assert message.format(**places) in str(raised.value)
    assert "list_file" not in str(raised.value)


def test_reading_options(root: Path) -> None:
    data = {"name": "list", "root": str(root), "val_list": str(root / "list.txt"), "classes": 2}
    config = config_from_dict({"data": {**data, "value_range": [0, 2]}, "run": {"max_steps": 1}})
    image = open_split(config.data, "val").read(0)[0]
    assert image[0].tolist() == [[0, 64], [128, 255]]
    with pytest.raises(ConfigError, match=r"data.value_range = \[2.0, 1.0\]: the first value must be below the second"):
        config_from_dict({"data": {**data, "value_range": [2, 1]}, "run": {"max_steps": 1}})
