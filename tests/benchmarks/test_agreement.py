"""Fused and plain training in lockstep: losses that agree in float64, and mIoU on the validation images asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import agreement, measure
from benchmarks.agreement import Validation
from pspnet_fast.data import write_scenes

TINY = ["--layers", "18", "--crop", "33", "--batch", "2", "--steps", "1", "--val-images", "2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=4, val=5, size=(48, 64))


def settings(root: Path, *arguments: str) -> argparse.Namespace:
    return agreement.parse(["--root", str(root), "--data", "scenes", *TINY, *arguments])


def test_losses_and_miou_side_by_side(root: Path) -> None:
    options = settings(root, "--steps", "2")
    row = agreement.compare(options, torch.float64, Validation.of(options, every=3))
    assert set(row["loss"]) == {"plain", "fused", "control"}
    assert row["largest_difference"]["fused"] < 1e-9
    assert len(row["loss"]["fused"]) == 2
    assert (row["miou"]["steps"], row["val_images"]) == ([2], 2)
    assert row["miou"]["fused"] == row["miou"]["plain"]
    assert all(0 <= value <= 1 for value in row["miou"]["control"])
    json.dumps(row)


def test_without_validation_there_is_no_miou(root: Path) -> None:
    row = agreement.compare(settings(root), torch.float32)
    assert not {"miou", "val_images"} & set(row)


def test_miou_is_of_the_labels_predicted(root: Path) -> None:
    """A network that predicts class 0 everywhere hits class 0 in full, and no other."""
    options = settings(root, "--val-images", "5")
    validation = Validation.of(options, every=1)
    road = agreement.roads_of(options, torch.float32)["fused"]
    with torch.no_grad():
        road.net.cls[4].weight.zero_()  # type: ignore[index, union-attr]
        road.net.cls[4].bias.zero_()[0] = 1  # type: ignore[index, union-attr]
    labels = torch.stack([label for _, label in (validation.dataset[index] for index in range(5))])
    known = labels[labels != 255]
    expected = (known == 0).double().mean() / known.unique().numel()
    assert road.miou(validation) == pytest.approx(float(expected))
    assert road.net.training


def test_validation_images_are_spread_over_the_split(root: Path) -> None:
    assert Validation.of(settings(root), every=1).indices == [0, 2]
    assert Validation.of(settings(root, "--val-images", "99"), every=1).indices == [0, 1, 2, 3, 4]


def test_rows_of_both_dtypes_are_saved(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(agreement, "compare", lambda options, dtype, validation: {
        "dtype": str(dtype), "steps": options.steps, "largest_difference": {},
        "miou": {"steps": [validation.every], "plain": [0.5]},
    })  # fmt: skip
    arguments = ["--root", str(root), "--data", "scenes", "--steps", "3", "--training-steps", "9"]
    agreement.main([*arguments, "--validate-every", "4"])
    rows = json.loads((tmp_path / "agreement_scenes.json").read_text())["rows"]
    assert [(row["dtype"], row["steps"], row["miou"]["steps"]) for row in rows] == [
        ("torch.float64", 3, [3]),
        ("torch.float32", 9, [4]),
    ]


def test_scenes_are_drawn_where_no_folder_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "SCENES", {"train": 1, "val": 1, "size": (48, 64)})
    options = agreement.parse([])
    assert options.data == "scenes"
    with agreement.data_root(options) as root:
        assert (root / "images" / "val" / "00000.jpg").is_file()
    assert not root.exists()


def test_a_data_set_needs_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        agreement.parse(["--data", "camvid"])
    assert "--data camvid needs its folder: --root" in capsys.readouterr().err
