"""What is wrong with a data set is said with file, value and remedy: when it is opened, read, or checked as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import save
from PIL import Image

from pspnet_fast.data import DatasetError, SegmentationDataset, check_headers, count_pixels, open_dataset
from pspnet_fast.data.check import check_dataset

COUNT = 14


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CamVid's layout: pictures of 6x8 pixels, of which number i has i pixels of class 1 and one that is left out."""
    for index in range(COUNT):
        label = np.zeros((6, 8), np.uint8)
        label.flat[:index] = 1
        label[-1, -1] = 11
        save(tmp_path / f"images/train/{index:02d}.png", np.zeros((6, 8, 3), np.uint8))
        save(tmp_path / f"labels/train/{index:02d}.png", label)
    return tmp_path


def camvid(root: Path) -> SegmentationDataset:
    return open_dataset("camvid", root, "train")


def open_list(root: Path, content: bytes) -> SegmentationDataset:
    (root / "list.txt").write_bytes(content)
    return open_dataset("list", root, "train", list_file=root / "list.txt", classes=2)


# ---- opened ----------------------------------------------------------------------------------------------------------


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
        ("training", Path.exists, r"split 'training' does not exist; choose from train, val, test"),
        ("val", Path.exists, r"images/val: folder not found"),
        ("train", lambda root: (root / "labels").rename(root / "x"), r"labels/train: folder of the labels not found"),
        ("train", rename_images, r"images/train: no image \(.jpg"),
        (
            "train",
            lambda root: (root / "labels/train/00.png").unlink(),
            r"labels/train/00.png: no such label.*14 images, 13 labels.*add the missing",
        ),
        (
            "train",
            lambda root: (root / "images/train/01.png").unlink(),
            r"images/train/01.jpg: no such image.*13 images, 14 labels",
        ),
        (
            "train",
            lambda root: Image.new("RGB", (8, 6)).save(root / "images/train/00.jpg"),
            r"00.png: has the same base name as 00.jpg",
        ),
    ],
)
def test_folders_that_do_not_fit(root: Path, split: str, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        open_dataset("camvid", root, split)


def test_voc_needs_its_split_file(tmp_path: Path) -> None:
    save(tmp_path / "JPEGImages/a.jpg", np.zeros((6, 8, 3), np.uint8))
    (tmp_path / "SegmentationClass").mkdir()
    with pytest.raises(
        DatasetError, match=r"ImageSets/Segmentation/train.txt: file with the names.*unpack VOCtrainval"
    ):
        open_dataset("voc", tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("list", {"classes": 2}, "data set 'list' needs list_file="),
        ("list", {"list_file": "x.txt"}, "data set 'list' needs classes="),
        ("list", {"list_file": "x.txt", "classes": 2}, r"x.txt: list file not found"),
        ("list", {"list_file": "x.txt", "classes": 300}, "labels of 8 bits hold 1 to 255"),
        ("list", {"list_file": "x.txt", "classes": "cityscapes"}, "classes='cityscapes': give the number"),
        ("camvid", {"classes": 3}, "classes= belongs to data set 'list' or 'folder', not to 'camvid'"),
    ],
)
def test_arguments(tmp_path: Path, name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(name, tmp_path, "train", **arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"images/train/00.png labels/train/00.png more", r"list.txt:1: expected 'image label'"),
        (b"\nimages/train/00.png labels/train/c.png", r"labels/train/c.png: not found, named by .*list.txt:2"),
        (b"\n", r"list.txt: no samples"),
        (
            "images/train/ä.png labels/train/00.png".encode("cp437"),
            r"not found, named by .*list.txt:1 \(the file is not UTF-8",
        ),
        *((content, r"list.txt") for content in (b"\xff\xfe", b"\xff\xfea", b"\0", b"\x89PNG\r\n\x1a\n\0\0")),
        (bytes(range(256)), r"list.txt"),
    ],
)
def test_list_files_that_do_not_fit(root: Path, content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_list(root, content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_list_files_in_any_encoding(root: Path, encoding: str, newline: str) -> None:
    for kind in ("images", "labels"):
        (root / f"{kind}/train/01.png").rename(root / f"{kind}/train/Straße.png")
    text = newline.join([f"images/train/{name}.png labels/train/{name}.png" for name in ("00", "Straße")])
    assert [sample.image.stem for sample in open_list(root, text.encode(encoding)).samples] == ["00", "Straße"]


def test_list_file_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: exec("raise PermissionError(13, 'Permission denied')"))
    with pytest.raises(DatasetError, match=r"list.txt: cannot be read \(Permission denied\)"):
        open_list(root, b"x")


def test_home_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    (root / "list.txt").write_text("images/train/00.png labels/train/00.png")
    assert len(open_dataset("camvid", f"~/{root.name}", "train")) == COUNT
    assert len(open_dataset("list", root, "train", list_file=f"~/{root.name}/list.txt", classes=2)) == 1
    with pytest.raises(DatasetError, match=r"~nobody_at_all.*write the folder in full"):
        open_dataset("camvid", "~nobody_at_all/camvid", "train")


# ---- read, or checked as a whole -------------------------------------------------------------------------------------


def other_size(path: Path) -> None:
    Image.new("L", (5, 5)).save(path)


FAULTS = {
    "images/train/02.png": (lambda path: path.write_text("no picture"), "02.png: corrupt or no picture"),
    "images/train/03.png": (lambda path: Image.new("F", (8, 6)).save(path, "TIFF"), r"03.png: mode F with values 0"),
    "labels/train/04.png": (other_size, r"04.png: label is 5x5 but its image .*04.png is 8x6"),
    "labels/train/05.png": (lambda path: Image.new("L", (8, 6)).save(path, "JPEG"), r"05.png: a label map in JPEG"),
    "labels/train/06.png": (
        lambda path: Image.new("RGB", (8, 6)).save(path),
        r"06.png: label has mode RGB.*8-bit.*data\.labels=colors",
    ),
    "labels/train/07.png": (Path.unlink, "07.png: not found"),
    "images/train/08.png": (Path.unlink, "08.png: not found"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_headers_show_what_cannot_be_used(root: Path, name: str) -> None:
    dataset = camvid(root)
    check_headers(dataset)
    spoil, message = FAULTS[name]
    spoil(root / name)
    with pytest.raises(DatasetError, match=rf"1 of 14 samples of camvid cannot be used:\n.*{message}"):
        check_headers(dataset)
    report = check_dataset(dataset)
    assert len(report.problems) == 1
    assert report.pixels.sum() == 13 * 48


def test_many_problems_are_counted(root: Path) -> None:
    for path in (root / "labels/train").iterdir():
        other_size(path)
    with pytest.raises(DatasetError, match=r"14 of 14 samples") as error:
        check_headers(camvid(root))
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "... and 4 more"


@pytest.mark.parametrize(("kind", "suffix"), [("images", ".png"), ("images", ".jpg"), ("labels", ".png")])
def test_truncated_files(root: Path, kind: str, suffix: str) -> None:
    """Half a picture has its header: reading finds it, and the full check, with `images` that of images too."""
    rng = np.random.default_rng(0)
    (root / "images/train/01.png").unlink()
    save(root / f"images/train/01{suffix}", rng.integers(0, 256, (60, 80, 3), np.uint8))
    save(root / "labels/train/01.png", rng.integers(0, 11, (60, 80), np.uint8))
    path = root / f"{kind}/train/01{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    dataset = camvid(root)
    check_headers(dataset)
    dataset[0]
    with pytest.raises(DatasetError, match=rf"{kind}/train/01{suffix}: corrupt or no picture.*fetch the file again"):
        dataset[1]
    assert len(check_dataset(dataset).problems) == (kind == "labels")
    assert [problem.split(":")[0] for problem in check_dataset(dataset, images=True).problems] == [str(path)]


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_of_each_class(root: Path, workers: int) -> None:
    expected = {0: 47 * COUNT - sum(range(COUNT)), 1: sum(range(COUNT)), 255: COUNT}
    dataset = camvid(root)
    counts = count_pixels(dataset, workers=workers)
    assert {index: int(counts[index]) for index in counts.nonzero().flatten().tolist()} == expected
    shares = [count_pixels(dataset, rank=rank, ranks=3) for rank in range(3)]
    assert (sum(shares) == counts).all()
    assert len({share.tolist()[1] for share in shares}) == 3

    report = check_dataset(dataset, workers=workers)
    assert (report.pixels == counts).all()
    assert (int(report.labels[0]), int(report.labels[1])) == (COUNT, COUNT - 1)
    assert dict(report.sizes) == {(8, 6): COUNT}
    assert dict(report.modes) == {"image: PNG RGB": COUNT, "label: PNG L": COUNT}
    assert not report.problems


def test_labels_that_cannot_be_read_end_the_count(root: Path) -> None:
    save(root / "labels/train/03.png", np.full((6, 8), 99, np.uint8))
    with pytest.raises(DatasetError, match=r"03.png: label value 99 is outside.*allowed are 0\.\.11, 255"):
        count_pixels(camvid(root))


@pytest.mark.skipif("PSPNET_FAST_CAMVID" not in os.environ, reason="PSPNET_FAST_CAMVID does not name CamVid's folder")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_every_sample_of_camvid_reads(split: str, count: int) -> None:
    report = check_dataset(open_dataset("camvid", os.environ["PSPNET_FAST_CAMVID"], split), images=True)
    assert not report.problems
    assert dict(report.sizes) == {(480, 360): count}
    assert report.pixels[:11].min() > 0
    assert report.pixels[11:255].sum() == 0
    assert report.pixels[3] / report.pixels[:11].sum() > 0.2  # a street scene is a quarter road
