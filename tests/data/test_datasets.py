"""The readers, on data sets of a few pixels that the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import save
from PIL import Image

from pspnet_fast.data import DATASETS, DatasetError, DatasetInfo, files, open_dataset
from pspnet_fast.data.classes import voc_colormap
from pspnet_fast.data.files import walk_files

HEIGHT, WIDTH = 6, 8


def save_image(path: Path, value: int = 100) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
    pixels[..., 0] = np.arange(WIDTH)
    save(path, pixels)


def save_label(path: Path, values: Sequence[int]) -> None:
    """A label map that repeats `values` along its pixels."""
    save(path, np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH)))


def make_camvid(root: Path) -> Path:
    for split in ("train", "val"):
        for index in range(2):
            save_image(root / f"images/{split}/{index:02d}.png", value=index)
            save_label(root / f"labels/{split}/{index:02d}.png", [index, 10, 11])
    return root


def make_cityscapes(root: Path, suffixes: Sequence[str] = ("labelIds",)) -> Path:
    for city, number in (("aachen", 0), ("bonn", 1)):
        name = f"train/{city}/{city}_00000{number}"
        save_image(root / f"leftImg8bit/{name}_leftImg8bit.png", value=number)
        values = {"labelIds": [7, 33, 0, 21], "labelTrainIds": [0, 18, 255, 8], "color": [1], "instanceIds": [1]}
        for suffix in (*suffixes, "color", "instanceIds"):
            save_label(root / f"gtFine/{name}_gtFine_{suffix}.png", values[suffix])
    return root


def make_voc(root: Path) -> Path:
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in {"train": ["b"], "val": ["a"], "trainval": ["a", "b"], "test": ["t"]}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")

    for name in ("a", "b", "t", "detection_only"):
        save_image(root / f"JPEGImages/{name}.jpg")
    (root / "SegmentationClass").mkdir()
    for name in "ab":
        paletted = Image.fromarray(np.resize(np.array([0, 20, 255], np.uint8), (HEIGHT, WIDTH)))
        paletted.putpalette([channel for color in voc_colormap(256) for channel in color])
        paletted.save(root / f"SegmentationClass/{name}.png")
    return root


def test_camvid_reads_images_and_labels(tmp_path: Path) -> None:
    dataset = open_dataset("camvid", make_camvid(tmp_path), "train")

    assert len(dataset) == 2
    assert [sample.image.name for sample in dataset.samples] == ["00.png", "01.png"]
    image, label = dataset[1]
    assert (image.dtype, image.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert (label.dtype, label.shape) == (torch.uint8, (HEIGHT, WIDTH))
    torch.testing.assert_close(image[0], torch.arange(WIDTH, dtype=torch.uint8).expand(HEIGHT, WIDTH))  # red first
    torch.testing.assert_close(image[1], torch.full((HEIGHT, WIDTH), 1, dtype=torch.uint8))
    assert label.flatten()[:4].tolist() == [1, 10, 255, 1]  # 11 is unlabelled


def test_without_labels_a_test_split_has_ignored_ones(tmp_path: Path) -> None:
    save_image(tmp_path / "images/test/x.png")
    for dataset in (open_dataset("camvid", tmp_path, "test"), open_dataset("voc", make_voc(tmp_path / "voc"), "test")):
        assert [sample.label for sample in dataset.samples] == [None]
        assert dataset[0][1].unique().tolist() == [255]


@pytest.mark.parametrize("kinds", [["labelIds"], ["labelTrainIds"], ["labelIds", "labelTrainIds"]])
def test_cityscapes_reads_the_more_complete_kind_of_label(tmp_path: Path, kinds: list[str]) -> None:
    make_cityscapes(tmp_path, kinds)
    if len(kinds) == 2:
        next(tmp_path.rglob("bonn*labelTrainIds.png")).unlink()  # a conversion that was broken off
    dataset = open_dataset("cityscapes", tmp_path, "train")
    assert [label.flatten()[:4].tolist() for _, label in dataset] == [[0, 18, 255, 8]] * 2


def test_cityscapes_label_ids_are_the_official_ones() -> None:
    table = DATASETS["cityscapes"].layouts[1].table
    expected = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [value for value in range(34) if table[value] != 255] == expected
    assert table[expected].tolist() == list(range(19))


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_ade20k_shifts_labels_by_one(tmp_path: Path, split: str, folder: str) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for name in ("training", "validation"):
        save_image(root / f"images/{name}/ADE.jpg")
        save_label(root / f"annotations/{name}/ADE.png", [0, 1, 150])
    dataset = open_dataset("ade20k", tmp_path, split)  # the folder that the archive was unpacked in

    assert dataset.samples[0].image.parent.name == folder
    assert dataset[0][1].flatten()[:3].tolist() == [255, 0, 149]


@pytest.mark.parametrize("subfolder", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_reads_palette_indices_of_the_split(tmp_path: Path, subfolder: str) -> None:
    make_voc(tmp_path / subfolder)

    assert [s.image.stem for s in open_dataset("voc", tmp_path, "trainval").samples] == ["a", "b"]
    assert [s.image.stem for s in open_dataset("voc", tmp_path, "val").samples] == ["a"]
    dataset = open_dataset("voc", tmp_path, "train")
    assert Image.open(dataset.samples[0].label).mode == "P"
    assert dataset[0][1].flatten()[:3].tolist() == [0, 20, 255]


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_list_file(tmp_path: Path, separator: str) -> None:
    space = " " if separator == "\t" else "_"
    save_image(tmp_path / f"pictures/a{space}b.png")
    save_label(tmp_path / "maps/ab.png", [2, 0, 255])
    list_file = tmp_path / "train.txt"
    list_file.write_text(f"\npictures/a{space}b.png{separator}maps/ab.png\n\n")

    dataset = open_dataset("list", tmp_path, "train", list_file=list_file, classes=["floor", "wall", "door"])
    assert dataset.info.classes == ("floor", "wall", "door")
    assert dataset[0][1].flatten()[:3].tolist() == [2, 0, 255]
    assert open_dataset("list", tmp_path, "train", list_file=list_file, classes=3).info.num_classes == 3


def test_list_file_of_images_alone_is_a_test_split(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "test.txt").write_text("a.png\n")

    arguments = {"list_file": tmp_path / "test.txt", "classes": 2}
    assert open_dataset("list", tmp_path, "test", **arguments).samples[0].label is None
    with pytest.raises(DatasetError, match=r"test.txt:1: expected 'image label'"):
        open_dataset("list", tmp_path, "train", **arguments)


@pytest.mark.parametrize(
    ("name", "count", "index", "label", "color"),
    [
        ("camvid", 11, 3, "road", (128, 64, 128)),
        ("cityscapes", 19, 13, "car", (0, 0, 142)),
        ("ade20k", 150, 0, "wall", (128, 0, 0)),
        ("ade20k", 150, 126, "animal", (224, 192, 192)),
        ("ade20k", 150, 149, "flag", (0, 224, 128)),
        ("voc", 21, 15, "person", (192, 128, 128)),
    ],
)
def test_infos(name: str, count: int, index: int, label: str, color: tuple[int, int, int]) -> None:
    info = DATASETS[name].info
    assert (info.classes[index], info.palette[index]) == (label, color)
    assert info.num_classes == len(set(info.classes)) == len(set(info.palette)) == count
    for layout in DATASETS[name].layouts:
        assert sorted(set(layout.table.tolist()) - {-1, 255}) == list(range(count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ("a", "b"), "palette": ((0, 0, 0),)}, "2 classes but 1 colours"),
        ({"classes": ("a", "a"), "palette": ((0, 0, 0), (1, 1, 1))}, "occur twice: a"),
        ({"classes": ("a",), "palette": ((0, 0, 0),), "ignore_index": 0}, "ignore_index=0 is also class 'a'"),
    ],
)
def test_info_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetInfo("x", **arguments)


def test_transform_is_called(tmp_path: Path) -> None:
    flip: Callable = lambda image, label: (image.flip(-1), label.flip(-1))  # noqa: E731
    plain = open_dataset("camvid", make_camvid(tmp_path), "val")
    flipped = open_dataset("camvid", tmp_path, "val", transform=flip)
    torch.testing.assert_close(flipped[0], flip(*plain[0]))


def test_linked_folders_are_walked(tmp_path: Path) -> None:
    root, elsewhere = make_cityscapes(tmp_path / "a"), tmp_path / "disk2"
    for kind in ("leftImg8bit", "gtFine"):
        (elsewhere / kind).mkdir(parents=True)
        (root / kind / "train" / "bonn").rename(elsewhere / kind / "bonn")
        (root / kind / "train" / "bonn").symlink_to(elsewhere / kind / "bonn")
    assert len(open_dataset("cityscapes", root, "train")) == 2


@pytest.mark.parametrize("target", ["images/train", "images", ".", "images/train/loop"])
def test_links_in_a_circle_end(tmp_path: Path, target: str) -> None:
    root = make_camvid(tmp_path)
    (root / "images/train/loop").symlink_to(root / target)
    names = [path.relative_to(root).as_posix() for path in walk_files(root / "images/train")]
    assert [name for name in names if "loop" not in name] == ["images/train/00.png", "images/train/01.png"]
    assert all(name.count("loop") <= 1 for name in names)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/00-checkpoint.png", "._00.png", ".Trash/x/y.png", "c/.x/z.png"])
def test_hidden_files_are_no_samples(tmp_path: Path, hidden: str) -> None:
    root = make_camvid(tmp_path / ".cache")  # above the data set, a dot means nothing
    save_image(root / "images/train" / hidden)
    assert len(open_dataset("camvid", root, "train")) == 2


def test_folders_that_cannot_be_listed_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_camvid(tmp_path)
    monkeypatch.setattr(files.os, "scandir", lambda _: exec("raise PermissionError(13, 'Permission denied')"))
    with pytest.raises(DatasetError, match=r"train: the folder cannot be listed \(Permission denied\)"):
        open_dataset("camvid", root, "train")
