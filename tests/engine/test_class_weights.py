"""Pixels of each class: counting, the checks before training, class weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import MakeConfig, call, refused, save_picture, save_pixels

from pspnet_fast.data import DATASETS, open_dataset
from pspnet_fast.engine import ConfigError, OptimConfig, TrainConfig, train
from pspnet_fast.engine.class_weights import PixelCounts, median_frequency_weights, training_class_weights
from pspnet_fast.engine.distributed import World

INFO = DATASETS["scenes"].info
SOME = torch.ones(256, dtype=torch.int64)
Masks = Callable[[list[int], list[int]], TrainConfig]


def test_median_frequency_weights() -> None:
    counts = torch.tensor([100, 400, 25, 0])
    weights = median_frequency_weights(counts, power=0.5)
    ratios = torch.tensor([1.0, 0.5, 2.0, 2.0])  # (median 100 / count) ** 0.5; the absent class gets the largest
    torch.testing.assert_close(weights, ratios / ratios.mean())


def test_pixel_counts(scenes: Path) -> None:
    train_set, val_set = (open_dataset("scenes", scenes, split) for split in ("train", "val"))
    counts = PixelCounts.of(train_set, val_set, World(torch.device("cpu")), workers=0)
    for found, dataset in ((counts.train, train_set), (counts.val, val_set)):
        expected = sum(torch.bincount(dataset[i][1].flatten(), minlength=256) for i in range(len(dataset)))
        torch.testing.assert_close(found, expected)


def test_class_weights_options() -> None:
    assert training_class_weights(OptimConfig(), INFO, SOME) is None
    given = training_class_weights(OptimConfig(class_weights=tuple(range(1, 12))), INFO, SOME)
    torch.testing.assert_close(given, torch.arange(1.0, 12.0))


def test_class_weights_that_leave_no_pixel_a_weight() -> None:
    counts = SOME.clone()
    counts[3] = 0
    with pytest.raises(ConfigError, match="is 0 for every class with a pixel"):
        training_class_weights(OptimConfig(class_weights=tuple(float(i == 3) for i in range(11))), INFO, counts)


@pytest.fixture
def masks(make_config: MakeConfig, tmp_path: Path) -> Masks:
    """A data set of two classes whose training and validation labels hold the given values; one training step."""

    def make(training: list[int], validation: list[int]) -> TrainConfig:
        rng = np.random.default_rng(0)
        for split, values in (("train", training), ("val", validation)):
            for i in range(2):
                save_picture(tmp_path / f"images/{split}/{i}.png", (65, 65), i)
                label = rng.choice(np.array(values, dtype=np.uint8), (65, 65))
                save_pixels(tmp_path / f"labels/{split}/{i}.png", label)
        return make_config("data.name=folder", f"data.root={tmp_path}", "data.classes=2", "run.max_steps=1")

    return make


@pytest.mark.parametrize(
    ("training", "validation", "parts"),
    [
        ([0, 255], [0, 255], ["no training pixel has class 'class 1'", "% of the training pixels have the value 255",
                              "save that as an index below 2"]),
        ([1], [0, 1], ["no training pixel has class 'class 0'", "data.classes (now 2)", "data.allow_absent_classes"]),
        ([255], [0, 1], ["split 'train': none of the 2 images has a labelled pixel"]),
        ([0, 1], [255], ["split 'val': none of the 2 images has a labelled pixel"]),
    ],
)  # fmt: skip
def test_labels_that_cannot_train(masks: Masks, training: list[int], validation: list[int], parts: list[str]) -> None:
    config = masks(training, validation)
    with pytest.raises(ConfigError) as caught:
        train(config)
    for part in parts:
        assert part in str(caught.value)
    assert not (Path(config.run.folder or "") / "last.pt").exists()


def test_absent_classes_that_are_allowed(masks: Masks, capsys: pytest.CaptureFixture[str]) -> None:
    config = masks([0], [0, 1])
    config.data.allow_absent_classes = True
    with pytest.raises(ConfigError, match="'class 1'"):  # with one class alone there is nothing to learn
        train(config)
    config = masks([0, 2], [0, 2])
    config.data.classes = 3
    config.data.allow_absent_classes = True
    train(config)
    printed = capsys.readouterr().err
    for split in ("training", "validation"):
        assert f"warning: no {split} pixel has class 'class 1'" in printed


def test_table_of_pixels() -> None:
    """A public data set's class without a pixel is a warning: a part of the data set may lack it."""
    train_counts, val_counts = SOME.clone(), SOME.clone()
    train_counts[4], val_counts[5] = 0, 0
    counts = PixelCounts(INFO, train_counts, val_counts)
    counts.check(TrainConfig().data, (1, 1))
    lines = counts.table().splitlines()
    assert len(lines) == 1 + 11 + 1 + 2
    assert lines[5].split() == [*INFO.classes[4].split(), "0", "(", "0.00%)", "1", "(", "0.39%)"]
    assert lines[-2:] == [
        f"warning: no training pixel has class {INFO.classes[4]!r}: the network cannot learn it",
        f"warning: no validation pixel has class {INFO.classes[5]!r}: its IoU is not measured",
    ]


def test_evaluating_without_labels(masks: Masks, tmp_path: Path) -> None:
    config = masks([0, 1], [0, 1])
    train(config)
    record = tmp_path / "metrics.json"
    arguments = ("evaluate", f"{config.run.folder}/best.pt", "--json", record)
    masks([0, 1], [255])
    assert "folder, split 'val': none of the 2 images has a labelled pixel" in refused(*arguments)
    assert not record.exists()
    masks([0, 1], [0])
    assert "-100" not in call(*arguments)
    assert json.loads(record.read_text())["classes"]["class 1"]["accuracy"] is None
