"""Checks of a whole data set: headers, labels, and the pixels of each class; of the real CamVid too, if it is here."""

from __future__ import annotations

import os
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


def test_headers_alone_are_read(root: Path) -> None:
    """Half a picture has its header: the full check finds it, with `images` those of images too."""
    for name in ("images/train/01.png", "labels/train/09.png"):
        pixels = np.random.default_rng(0).integers(0, 11, (6, 8, 3) if "images" in name else (6, 8), np.uint8)
        save(root / name, pixels)
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: content.index(b"IDAT") + 12])
    check_headers(camvid(root))
    assert [problem.split(":")[0][-6:] for problem in check_dataset(camvid(root)).problems] == ["09.png"]
    assert [problem.split(":")[0][-6:] for problem in check_dataset(camvid(root), images=True).problems] == [
        "01.png",
        "09.png",
    ]


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
