"""Runs on one's own data: folders and lists that a configuration describes, and any torch data set."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from run_files import MakeConfig, rows, save_pixels, weights
from torch import Tensor
from torch.utils.data import Dataset

from pspnet_fast.data import DatasetError, DatasetInfo, eval_transform, open_dataset
from pspnet_fast.data.classes import CAMVID
from pspnet_fast.engine import (
    ConfigError,
    PreparedDataset,
    TrainConfig,
    config_from_dict,
    evaluate,
    load_trained,
    predict_paths,
    train,
)
from pspnet_fast.engine.datasets import open_split

COLORS = dict(zip(CAMVID.classes, map(list, CAMVID.palette), strict=True))


def own(make_config: MakeConfig, root: Path, **data: Any) -> TrainConfig:
    options = {"name": "folder", "root": str(root), "image_folder": "photos", "label_folder": "masks"} | data
    return make_config("run.max_steps=2", *(f"data.{key}={json.dumps(value)}" for key, value in options.items()))


@pytest.mark.parametrize("kind", ["colors", "offset"])
def test_a_folder_with_an_automatic_split(make_config: MakeConfig, own_pictures: Path, kind: str) -> None:
    root = own_pictures / kind
    data = {"classes": COLORS, "labels": "colors", "values": {"#000000": "ignore"}}
    if kind == "offset":
        values = {1000 + index: name for index, name in enumerate(CAMVID.classes)}
        data = {"classes": list(COLORS), "values": values, "ignore_value": 65535}
    config = own(make_config, root, **data, val_fraction=0.25, allow_absent_classes=True)
    result = train(config)
    split = yaml.safe_load((result.folder / "split.yaml").read_text())
    assert (len(split["train"]), len(split["val"])) == (9, 3)
    assert split["val"][0].startswith("photos/")

    # The labels are those of the scenes, whatever their files hold.
    label = open_split(config.data, "val").read_label(0)
    assert label is not None
    expected = open_dataset("scenes", own_pictures / "scenes", "train").read_label(int(Path(split["val"][0]).stem))
    torch.testing.assert_close(label, expected)

    trained = load_trained(result.folder / "best.pt")
    assert trained.info.classes == CAMVID.classes
    assert evaluate(trained.model, open_split(config.data, "val"), config.eval).miou == pytest.approx(result.best_miou)
    (written,) = predict_paths(trained, [root / split["val"][0]], result.folder / "out")
    assert written.overlay.exists()


def test_the_split_stays_when_pictures_are_added(make_config: MakeConfig, own_pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(own_pictures / "colors", root)
    options = {"classes": COLORS, "labels": "colors", "unknown_labels": "ignore", "allow_absent_classes": True}
    config = own(make_config, root, **options, val_fraction=0.25)
    folder = train(config).folder
    before = (folder / "split.yaml").read_text()
    for index in range(30):
        shutil.copy(root / "photos/00000.jpg", root / f"photos/more{index}.jpg")
        shutil.copy(root / "masks/00000.png", root / f"masks/more{index}.png")
    config.run.max_steps = 3
    assert train(config, resume=True).step == 3
    assert (folder / "split.yaml").read_text() == before


def test_without_validation(make_config: MakeConfig, own_pictures: Path) -> None:
    options = {"classes": COLORS, "labels": "colors", "unknown_labels": "ignore", "allow_absent_classes": True}
    with pytest.raises(ConfigError, match=r"image_folder = \S+ has no \{split\}.*data\.val_split=null"):
        train(own(make_config, own_pictures / "colors", **options))
    result = train(own(make_config, own_pictures / "colors", **options, val_split=None))
    assert result.metrics is None
    assert not (result.folder / "best.pt").exists()
    assert rows(result.folder / "metrics.csv") == []
    assert load_trained(result.folder / "last.pt").step == 2
    public = make_config("run.max_steps=1", "data.val_split=null", folder="public")
    assert train(public).metrics is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("name=list classes=2", "data.{key} is not set"),
        ("name=list {key}={root}/list.txt", "data.classes is not set"),
        ("name=list classes=2 {key}={root}/none.txt", "data.{key}: {root}/none.txt: list file not found"),
        ("name=voc {key}={root}/list.txt", "data.{key} = {root}/list.txt is for data.name=list, not for voc"),
        ("name=voc classes=2", "data.classes = 2 is for data.name=list"),
        ("name=voc reduce_zero_label=true", "data.reduce_zero_label = True is for data.name=list or folder"),
        ("name=voc label_suffix=.tif", "data.label_suffix = .tif is for data.name=folder"),
        ("name=folder", "data.classes is not set: data.name=folder needs"),
        ("name=folder classes=2 {key}=x", "data.{key} = x is for data.name=list, not for folder"),
        ("name=folder classes=2 val_fraction=0.5", "has splits, and data.val_fraction makes"),
        ("name=folder classes=2 labels=colors", "labels=colors needs the colour of each class"),
        ('name=folder classes={{"a":"#00ff"}}', "colours as #rrggbb"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path: Path, training: bool, options: str, message: str) -> None:
    (tmp_path / "list.txt").write_text("a.tif a.png")
    places = {"key": "train_list" if training else "val_list", "root": tmp_path}
    changes = [f"data.{option}" for option in options.format(**places).split()]

    def opened() -> object:
        config = config_from_dict({"run": {"max_steps": 1}}, [f"data.root={tmp_path}", *changes])
        return open_split(config.data, "train", training=training)

    with pytest.raises(DatasetError if "none.txt" in options else ConfigError) as raised:
        opened()
    assert message.format(**places) in str(raised.value)
    assert "list_file" not in str(raised.value)


def test_reading_options(tmp_path: Path) -> None:
    save_pixels(tmp_path / "a.tif", np.array([[0.0, 0.5], [1.0, 2.0]], np.float32))
    save_pixels(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "list.txt").write_text("a.tif a.png")
    data = {"name": "list", "root": str(tmp_path), "val_list": f"{tmp_path}/list.txt", "classes": 2}
    config = config_from_dict({"data": {**data, "value_range": [0, 2]}, "run": {"max_steps": 1}})
    image = open_split(config.data, "val").read(0)[0]
    assert image[0].tolist() == [[0, 64], [128, 255]]


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """Two classes that their colour tells apart; -1 does not count."""

    info = DatasetInfo("squares", ("dark", "bright"), ((0, 0, 0), (255, 255, 255)), ignore_index=-1)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = torch.zeros(48, 40, dtype=torch.int64)
        label[8 * index :, 10:30] = 1
        image = (200 * label + 20).to(torch.uint8).expand(3, -1, -1).contiguous()
        label[:2] = -1
        return (image if self.dtype == torch.uint8 else image.to(self.dtype) / 128 - 1), label


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
@pytest.mark.parametrize("weighted", ["none", "frequency"])
def test_any_torch_data_set(make_config: MakeConfig, dtype: torch.dtype, weighted: str) -> None:
    """Bytes are augmented and normalised as the configuration says, floats are taken as they are."""
    options = (f"optim.class_weights={weighted}", "run.max_steps=3")
    data = {"dataset": Squares(dtype), "val_dataset": Squares(dtype)}
    straight = train(make_config(*options, folder="straight"), **data)
    assert straight.metrics is not None
    assert int(straight.metrics.confusion.sum()) == 4 * 46 * 40
    train(make_config(*options, "run.max_steps=1", folder="broken"), **data)
    resumed = train(make_config(*options, folder="broken"), **data, resume=True)
    torch.testing.assert_close(weights(resumed.folder), weights(straight.folder), rtol=0, atol=0)
    trained = load_trained(resumed.folder / "best.pt")
    assert trained.info == replace(Squares.info, ignore_index=255)
    prepared = PreparedDataset(Squares(dtype), Squares.info, eval_transform())
    assert evaluate(trained.model, prepared, trained.config.eval).miou == pytest.approx(resumed.best_miou)


BYTES = (torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(40, 40).long())
FLOATS = torch.zeros(3, 8, 8)


@pytest.mark.parametrize(
    ("dataset", "val_dataset", "message"),
    [
        ([], None, "^dataset has no samples; add some$"),
        ([BYTES] * 4, [], "^val_dataset has no samples; add some, or leave it out"),
        (iter([BYTES]), None, "^dataset is list_iterator; it must have a length"),
        ([(torch.zeros(3, 33, 8 + i), torch.zeros(33, 8 + i).long()) for i in range(4)], None, "and another sample"),
        ([FLOATS] * 4, None, r"dataset\[\d\] is float32 \[3, 8, 8\]; it must be a pair"),
        (
            [(FLOATS.permute(1, 2, 0), FLOATS[0].long())] * 4,
            None,
            r"image float32 \[8, 8, 3\] and a label int64 \[8, 8\]",
        ),
        ([(FLOATS, FLOATS[0])] * 4, None, r"a label float32 \[8, 8\]; it must be"),
        ([(FLOATS, FLOATS[0].long() + 300)] * 4, None, r"300 \.\. 300; squares has the classes 0 \.\. 1, and -1"),
        ([(*BYTES, 1)] * 4, None, r"is \(uint8 \[3, 40, 40\], int64 \[40, 40\], int\); it must be a pair"),
        ([BYTES] * 4, [(BYTES[0], BYTES[1][1:])], r"^val_dataset\[0\] is an image .* and a label int64 \[39, 40\]"),
    ],
)
def test_data_sets_that_are_none(make_config: MakeConfig, dataset: Any, val_dataset: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_config("run.max_steps=1"), dataset=dataset, val_dataset=val_dataset, info=Squares.info)


def test_classes_that_nobody_names(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"give info=DatasetInfo\(\.\.\.\), or set data\.classes"):
        train(make_config(), dataset=[BYTES] * 4)  # type: ignore[arg-type]


def inverted(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    return 255 - image, label


def cut(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    return image[:, 1:], label


def alone(image: Tensor, _: Tensor) -> Tensor:
    return image.float()


def test_a_named_transform(make_config: MakeConfig) -> None:
    config = make_config(f"data.transform={__name__}:inverted", "data.jitter=0.2", "run.max_steps=1")
    assert train(config).step == 1
    for name in ("no_such_module:f", f"{__name__}:none", "nothing", f"{__name__}:pytest"):
        with pytest.raises(ConfigError, match=rf"data\.transform = {name}"):
            train(make_config(f"data.transform={name}", folder="other"))
    returned = {"cut": r"uint8 \[3, 63, 96\], uint8 \[64, 96\]", "alone": r"float32 \[3, 64, 96\]"}
    for name, message in returned.items():
        with pytest.raises(ConfigError, match=rf"data\.transform = \S+:{name} returns {message}; it must return"):
            train(make_config(f"data.transform={__name__}:{name}", folder=name))
