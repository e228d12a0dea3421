"""Every way a data set can be wrong gives an error that names the file, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import save
from PIL import Image

from pspnet_fast.data import DatasetError, open_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CamVid's layout: two pictures in train."""
    for name in ("a", "b"):
        save(tmp_path / f"images/train/{name}.png", np.zeros((6, 8, 3), np.uint8))
        save(tmp_path / f"labels/train/{name}.png", np.zeros((6, 8), np.uint8))
    return tmp_path


def rename_images(root: Path) -> None:
    for path in root.glob("images/train/*"):
        path.rename(path.with_suffix(".gif"))


@pytest.mark.parametrize("name", ["camvid", "scenes", "cityscapes", "ade20k", "voc"])
def test_missing_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=rf"nowhere.*not found for split 'val' of {name}.*(expected|unpack|draw)"):
        open_dataset(name, tmp_path / "nowhere", "val")


@pytest.mark.parametrize(
    ("split", "spoil", "message"),
    [
        ("training", None, r"split 'training' does not exist; choose from train, val, test"),
        ("val", None, r"images/val: folder not found"),
        ("train", lambda root: (root / "labels").rename(root / "x"), r"labels/train: folder of the labels not found"),
        ("train", rename_images, r"images/train: no image \(.jpg"),
        (
            "train",
            lambda root: (root / "labels/train/a.png").unlink(),
            r"labels/train/a.png: no such label.*2 images, 1 labels.*add the missing",
        ),
        (
            "train",
            lambda root: (root / "images/train/b.png").unlink(),
            r"images/train/b.jpg: no such image.*1 images, 2 labels",
        ),
        (
            "train",
            lambda root: Image.new("RGB", (8, 6)).save(root / "images/train/a.jpg"),
            r"a.png: has the same base name as a.jpg",
        ),
    ],
)
def test_folders_that_do_not_fit(root: Path, split: str, spoil: Callable[[Path], object] | None, message: str) -> None:
    if spoil is not None:
        spoil(root)
    with pytest.raises(DatasetError, match=message):
        open_dataset("camvid", root, split)


@pytest.mark.parametrize(("kind", "suffix"), [("images", ".png"), ("images", ".jpg"), ("labels", ".png")])
def test_truncated_file(root: Path, kind: str, suffix: str) -> None:
    path = root / f"{kind}/train/b.png"
    pixels = np.random.default_rng(0).integers(0, 11, (60, 80, 3) if kind == "images" else (60, 80), np.uint8)
    path.unlink()
    path = save(path.with_suffix(suffix), pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    dataset = open_dataset("camvid", root, "train")
    dataset[0]
    with pytest.raises(DatasetError, match=rf"{kind}/train/b{suffix}: corrupt or no picture.*fetch the file again"):
        dataset[1]


def test_voc_needs_its_split_file(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "JPEGImages/a.jpg")
    with pytest.raises(
        DatasetError, match=r"ImageSets/Segmentation/train.txt: file with the names.*unpack VOCtrainval"
    ):
        open_dataset("voc", tmp_path, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 2}, "data set 'list' needs list_file="),
        ({"list_file": "x.txt"}, "data set 'list' needs classes="),
        ({"list_file": "x.txt", "classes": 2}, r"x.txt: list file not found"),
        ({"list_file": "x.txt", "classes": 300}, "labels of 8 bits hold 1 to 255"),
        ({"list_file": "x.txt", "classes": "cityscapes"}, "classes='cityscapes': give the number"),
    ],
)
def test_list_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    if "list_file" in arguments:
        arguments = {**arguments, "list_file": tmp_path / arguments["list_file"]}
    with pytest.raises(ValueError, match=message):
        open_dataset("list", tmp_path, "train", **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images/train/a.png labels/train/a.png more", r"list.txt:1: expected 'image label'"),
        ("\nimages/train/a.png labels/train/c.png", r"labels/train/c.png: not found, named by .*list.txt:2"),
        ("\n", r"list.txt: no samples"),
    ],
)
def test_list_lines(root: Path, text: str, message: str) -> None:
    (root / "list.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset("list", root, "train", list_file=root / "list.txt", classes=2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_list_files_in_any_encoding(root: Path, encoding: str, newline: str) -> None:
    for kind in ("images", "labels"):
        (root / f"{kind}/train/b.png").rename(root / f"{kind}/train/Straße.png")
    text = newline.join([f"images/train/{name}.png labels/train/{name}.png" for name in ("a", "Straße")])
    (root / "list.txt").write_bytes(text.encode(encoding))
    dataset = open_dataset("list", root, "train", list_file=root / "list.txt", classes=2)
    assert [sample.image.stem for sample in dataset.samples] == ["a", "Straße"]


def test_names_read_as_latin_1_say_so_when_missing(root: Path) -> None:
    (root / "list.txt").write_bytes("images/train/ä.png labels/train/a.png".encode("cp437"))
    with pytest.raises(DatasetError, match=r"not found, named by .*list.txt:1 \(the file is not UTF-8"):
        open_dataset("list", root, "train", list_file=root / "list.txt", classes=2)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\xff\xfea", b"\0", b"\x89PNG\r\n\x1a\n\0\0", bytes(range(256))])
def test_list_files_that_are_no_text(root: Path, content: bytes) -> None:
    (root / "list.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=r"list.txt"):
        open_dataset("list", root, "train", list_file=root / "list.txt", classes=2)


def test_list_file_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "list.txt").write_text("x")
    monkeypatch.setattr(Path, "read_bytes", lambda self: exec("raise PermissionError(13, 'Permission denied')"))
    with pytest.raises(DatasetError, match=r"list.txt: cannot be read \(Permission denied\)"):
        open_dataset("list", root, "train", list_file=root / "list.txt", classes=2)


def test_home_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    (root / "list.txt").write_text("images/train/a.png labels/train/a.png")
    assert len(open_dataset("camvid", f"~/{root.name}", "train")) == 2
    assert len(open_dataset("list", root, "train", list_file=f"~/{root.name}/list.txt", classes=2)) == 1
    with pytest.raises(DatasetError, match=r"~nobody_at_all.*write the folder in full"):
        open_dataset("camvid", "~nobody_at_all/camvid", "train")


def test_list_file_belongs_to_list(root: Path) -> None:
    with pytest.raises(ValueError, match="classes= belongs to data set 'list' or 'folder', not to 'camvid'"):
        open_dataset("camvid", root, "train", classes=3)
