"""Drawn street scenes: the same for the same seed, all classes, and on disk as CamVid lays it out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pspnet_fast.data import DatasetError, draw_scene, open_dataset, scenes, write_scenes

SIZE = (60, 80)


def test_same_scene_in_another_process() -> None:
    code = f"""
import hashlib
from pspnet_fast.data import draw_scene
print(hashlib.sha256(b"".join(part.tobytes() for part in draw_scene((5, 1), {SIZE}))).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(b"".join(part.tobytes() for part in draw_scene((5, 1), SIZE))).hexdigest()


def test_other_seed_other_scene() -> None:
    assert not np.array_equal(draw_scene(3, SIZE)[1], draw_scene(4, SIZE)[1])
    assert not np.array_equal(draw_scene((0, 1), SIZE)[1], draw_scene((0, 2), SIZE)[1])


@pytest.mark.parametrize("size", [(48, 48), (61, 83), (120, 70)])
def test_types_and_sizes(size: tuple[int, int]) -> None:
    image, label = draw_scene(0, size)
    assert (image.dtype, image.shape) == (np.uint8, (*size, 3))
    assert (label.dtype, label.shape) == (np.uint8, size)
    assert label.max() <= 11
    assert label.flags.c_contiguous
    assert image.std() > 20


def test_every_class_shows_up_and_little_is_unlabelled() -> None:
    counts = sum(np.bincount(draw_scene(seed, SIZE)[1].ravel(), minlength=12) for seed in range(16))
    share = counts / counts.sum()

    assert (share[:11] > 0.001).all(), share
    assert 0 < share[11] < 0.03
    assert share[[0, 1, 3, 5]].sum() > 0.6  # sky, building, road and tree are what a street is made of


def test_colour_alone_does_not_give_the_class() -> None:
    """The best guess from a pixel's colour, 4 bits a channel, is often wrong even on the scenes it was made from."""
    scenes = [draw_scene(seed, SIZE) for seed in range(16)]
    image = np.concatenate([image.reshape(-1, 3) for image, _ in scenes]) >> 4
    label = np.concatenate([label.ravel() for _, label in scenes])
    color = image[:, 0].astype(int) * 256 + image[:, 1] * 16 + image[:, 2]
    votes = np.zeros((4096, 12), int)
    np.add.at(votes, (color, label), 1)

    right = votes.argmax(1)[color] == label
    recall = [right[label == index].mean() for index in range(11)]
    assert 0.4 < right.mean() < 0.8
    assert np.mean(recall) < 0.5


def test_written_scenes_are_read_back(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "made" / "scenes", train=3, val=2, size=SIZE, seed=7)
    train, val = (open_dataset("scenes", root, split) for split in ("train", "val"))

    assert (len(train), len(val)) == (3, 2)
    assert train.info.classes[3] == "road"
    image, label = draw_scene((7, 1, 1), SIZE)  # seed, split, number
    got_image, got_label = val[1]
    expected = torch.from_numpy(np.where(label == 11, 255, label))
    torch.testing.assert_close(got_label, expected)
    assert (got_image.float() - torch.from_numpy(image).permute(2, 0, 1)).abs().mean() < 8  # JPEG
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["scenes"]  # nothing temporary is left
    assert len(open_dataset("camvid", root, "train")) == 3


def test_more_scenes_begin_with_the_same_ones(tmp_path: Path) -> None:
    few = open_dataset("scenes", write_scenes(tmp_path / "few", train=1, val=1, size=SIZE), "train")
    more = open_dataset("scenes", write_scenes(tmp_path / "more", train=2, val=1, size=SIZE), "train")
    torch.testing.assert_close(few[0], more[0])
    assert not torch.equal(more[0][1], more[1][1])


def test_an_empty_folder_is_filled_and_a_second_call_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    write_scenes(tmp_path / "s", train=1, val=1, size=SIZE)
    assert json.loads((tmp_path / "s/scenes.json").read_text())["size"] == list(SIZE)
    monkeypatch.setattr(scenes, "draw_scene", lambda *_: pytest.fail("drawn again"))
    assert write_scenes(tmp_path / "s", train=1, val=1, size=SIZE) == tmp_path / "s"


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 2}, {"size": (64, 80)}])
def test_other_scenes_are_not_replaced(tmp_path: Path, change: dict) -> None:
    arguments = {"train": 1, "val": 1, "size": SIZE, "seed": 0}
    write_scenes(tmp_path / "s", **arguments)
    with pytest.raises(DatasetError, match=r"scenes.json: holds other scenes.*choose another folder"):
        write_scenes(tmp_path / "s", **{**arguments, **change})


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DatasetError, match=r"is not a folder of scenes"):
        write_scenes(tmp_path, train=1, val=1, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_broken_off_run_leaves_no_half_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def third_fails(seed: tuple[int, int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if seed[2] == 2:
            raise KeyboardInterrupt
        return draw_scene(seed, size)

    monkeypatch.setattr(scenes, "draw_scene", third_fails)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "s", train=3, val=1, size=SIZE)
    assert not (tmp_path / "s").exists()


def test_two_writers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that finishes first, with the same scenes, is no error."""
    arguments = {"train": 1, "val": 1, "size": SIZE, "seed": 0}

    def other_is_faster(*args: Any) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.undo()
        write_scenes(tmp_path / "s", **arguments)
        return draw_scene(*args)

    monkeypatch.setattr(scenes, "draw_scene", other_is_faster)
    write_scenes(tmp_path / "s", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "each split needs at least one scene"),
        ({"val": -1}, "each split needs at least one scene"),
        ({"size": (10, 100)}, r"size=\(10, 100\): a street needs at least 48"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()
