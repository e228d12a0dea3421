"""Label files: which formats hold indices; colours, 8- and 16-bit values and value maps; automatic splits."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from picture_files import save, save_pgm, save_tiff
from PIL import Image

from pspnet_fast.data import (
    DatasetError,
    Layout,
    OwnLabels,
    Sample,
    UnknownLabelError,
    open_dataset,
    read_header,
    read_label,
    split_samples,
)
from pspnet_fast.data.check import check_dataset
from pspnet_fast.data.classes import label_table
from pspnet_fast.data.dataset import sample_names

TABLE = label_table({0: 0, 1: 1}, (255,))
COLORS = {"grass": (0, 128, 0), "sky": (10, 20, 255), "road": (128, 64, 128)}
MAP = np.array([[0, 1, 2], [2, 1, 0]])
CODES = np.array([*COLORS.values()], np.uint8)[MAP]


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P"])
def test_colors(tmp_path: Path, kind: str) -> None:
    if kind == "P":  # indices in another order than the classes': the colours count
        path, picture = tmp_path / "a.png", Image.fromarray(np.array([2, 0, 1], np.uint8)[MAP])
        picture.putpalette([*COLORS["sky"], *COLORS["road"], *COLORS["grass"]])
        picture.save(path)
    else:
        path = save(tmp_path / "a.png", np.array(Image.fromarray(CODES).convert(kind)))
    assert read_label(path, OwnLabels(COLORS, "colors").table()).tolist() == MAP.tolist()
    assert read_header(path, label=True, colors=True).size == (3, 2)


def test_unknown_colors_are_counted_and_named(tmp_path: Path) -> None:
    pixels = CODES.copy()
    pixels[0, 0], pixels[1] = (1, 2, 3), (255, 255, 255)
    path = save(tmp_path / "a.png", pixels)
    with pytest.raises(
        UnknownLabelError, match=r"#ffffff \(3 pixels\), #010203 \(1 pixels\).*unknown_labels"
    ) as caught:
        read_label(path, OwnLabels(COLORS, "colors").table())
    assert caught.value.counts == {"#ffffff": 3, "#010203": 1}
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), UnknownLabelError)  # as from a loader process

    labels = OwnLabels(COLORS, "colors", {"#ffffff": "ignore", "#010203": "road"})
    assert read_label(path, labels.table()).tolist() == [[2, 1, 2], [255] * 3]
    labels = OwnLabels(COLORS, "colors", unknown="ignore")
    assert read_label(path, labels.table()).tolist() == [[255, 1, 2], [255] * 3]


@pytest.mark.parametrize(
    ("labels", "dtype", "values", "expected"),
    [
        (OwnLabels(3), np.uint8, [0, 1, 2, 255], [0, 1, 2, 255]),
        (OwnLabels(3, reduce_zero_label=True), np.uint8, [0, 1, 2, 3, 255], [255, 0, 1, 2, 255]),
        (OwnLabels(("a", "b"), values={0: "ignore", 7: "b", 9: 0}), np.uint8, [0, 7, 9, 255], [255, 1, 0, 255]),
        (OwnLabels(2, values={0: 0, 255: 1}, ignore_value=None), np.uint8, [0, 255], [0, 1]),
        (OwnLabels(2, values={0: 0, 255: 1}, ignore_value=None), bool, [False], [0]),
        (OwnLabels(2, values={1000: 0, 1001: 1}, ignore_value=65535), np.uint16, [1000, 1001, 65535], [0, 1, 255]),
        (OwnLabels(2, values={1000: 0, 1001: 1}, ignore_value=0), np.uint16, [0, 1000], [255, 0]),
        (OwnLabels(3, unknown="ignore"), np.uint16, [0, 2, 300, 65535], [0, 2, 255, 255]),
    ],
)
def test_values(tmp_path: Path, labels: OwnLabels, dtype: type, values: list[int], expected: list[int]) -> None:
    path = save(tmp_path / "a.png", np.array([values], dtype))
    assert read_label(path, labels.table()).tolist() == [expected]


@pytest.mark.parametrize(
    ("labels", "value", "message"),
    [
        (OwnLabels(3), 3, r"label value 3 is outside the classes; allowed are 0\.\.2, 255"),
        (OwnLabels(2, values={1000: 0, 1001: 1}), 1002, r"label value 1002 .*allowed are 255, 1000\.\.1001"),
        (OwnLabels(2, values={1000: 0, 1001: 1}), 40000, r"label value 40000 "),
    ],
)
def test_unknown_values(tmp_path: Path, labels: OwnLabels, value: int, message: str) -> None:
    with pytest.raises(UnknownLabelError, match=message) as caught:
        read_label(save(tmp_path / "a.png", np.full((2, 3), value, np.uint16)), labels.table())
    assert caught.value.counts == {str(value): 6}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (OwnLabels(256), "256 classes"),
        (OwnLabels(("a", "a")), "class names occur twice: a"),
        (OwnLabels(3, "colors"), "needs the colour of each class"),
        (OwnLabels({"a": (1, 2, 3), "b": (1, 2, 3)}, "colors"), "'b' has the colour #010203 of another class"),
        (OwnLabels(("a", "b"), values={0: "c"}), "'c' is no class; use 'ignore' or one of a, b"),
        (OwnLabels(3, ignore_value=2), "ignore_value=2 is also class 'class 2'"),
        (OwnLabels(3, values={0: 0}, reduce_zero_label=True), "two meanings"),
        (OwnLabels(3, values={"#000000": 0}), "colours belong to labels=colors"),
        (OwnLabels(COLORS, "colors", {"black": 0}), "'black' is no colour"),
    ],
)
def test_descriptions_that_contradict_themselves(labels: OwnLabels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels.table()


def test_a_folder_of_colour_masks_is_checked(tmp_path: Path) -> None:
    """Labels beside their images, in one folder with them."""
    for name in "abc":
        save(tmp_path / f"{name}.png", np.zeros((2, 3, 3), np.uint8))
        save(tmp_path / f"{name}_mask.png", CODES)
    own = OwnLabels(COLORS, "colors")
    layout = Layout(".", ".", own.table(), label_suffix="_mask.png", splits={})
    dataset = open_dataset("folder", tmp_path, "any", classes=own, layout=layout)
    assert [sample.image.name for sample in dataset.samples] == ["a.png", "b.png", "c.png"]
    assert dataset[0][1].tolist() == MAP.tolist()
    assert check_dataset(dataset).pixels[:4].tolist() == [6, 6, 6, 0]

    save(tmp_path / "b_mask.png", CODES // 2)
    report = check_dataset(dataset)
    assert dict(report.unknown) == {"#004000": 2, "#050a7f": 2, "#402040": 2}
    assert len(report.problems) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 100}),
        ("a.webp", {"lossless": False}),
        ("a.webp", {"lossless": True}),  # of colours: no indices either
        ("a.jp2", {}),
        ("a.tif", {"compression": "jpeg"}),
        ("a.avif", {}),
        ("a.gif", {}),  # renumbers its colours
    ],
)
@pytest.mark.parametrize("value", [0, 1])
def test_lossy_labels_are_refused_whatever_they_hold(tmp_path: Path, name: str, options: dict, value: int) -> None:
    path = tmp_path / name
    try:
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, **options)
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow does not write {name}: {error}")
    renamed = path.rename(path.with_suffix(".png"))  # the content decides
    for read in (lambda: read_label(renamed, TABLE), lambda: read_header(renamed, label=True)):
        with pytest.raises(DatasetError, match=r"a.png: a label map in .*write the label as PNG"):
            read()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tga", "a.pgm", "a.tif"])
def test_lossless_labels(tmp_path: Path, name: str) -> None:
    pixels = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    options = {"compression": "tiff_lzw"} if name == "a.tif" else {}
    assert read_label(save(tmp_path / name, pixels, **options), TABLE).tolist() == pixels.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    """Pillow reads grey of 2 bits as 0, 85, 170, 255: right for pictures."""
    from zlib import compress, crc32

    values = np.array([[0, 1, 1, 0, 1, 0, 0, 1]])
    packed = np.packbits(((values[..., None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).ravel()).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compress(b"\0" + packed)) + chunk(b"IEND", b""))
    assert read_label(path, TABLE).tolist() == values.tolist()


def test_labels_that_are_scaled_or_inverted_are_refused(tmp_path: Path) -> None:
    pixels = np.array([[0, 1]], np.uint8)
    with pytest.raises(DatasetError, match="scaled or inverted"):
        read_label(save_pgm(tmp_path / "a.pgm", pixels, 1), TABLE)  # else: 0, 255
    with pytest.raises(DatasetError, match="scaled or inverted"):
        read_label(save_tiff(tmp_path / "a.tif", 255 * pixels, t262=0), TABLE)
    with pytest.raises(DatasetError, match="label has mode F"):
        read_label(save_tiff(tmp_path / "f.tif", pixels.astype(np.float32)), TABLE)


def samples(count: int) -> list[Sample]:
    return [Sample(Path(f"/data/images/{index}.png"), None) for index in range(count)]


def test_automatic_split() -> None:
    root, options = Path("/data"), {"fraction": 0.25, "seed": 3}
    both = samples(12)
    train, val = (split_samples(both, root, split, **options) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3)
    assert sorted(sample_names(train + val, root)) == sorted(sample_names(both, root))
    assert split_samples(both, root, "all", **options) == both
    assert split_samples(both[::-1], root, "val", **options) == val[::-1]
    assert split_samples(both, root, "val", fraction=0.25, seed=4) != val
    # What was written down stays, though pictures were added since.
    assert split_samples(samples(40), root, "val", held_out=sample_names(val, root), **options) == val
    with pytest.raises(DatasetError, match="none is left to train"):
        split_samples(samples(1), root, "train", **options)
    with pytest.raises(DatasetError, match="split 'test' does not exist"):
        split_samples(both, root, "test", **options)
