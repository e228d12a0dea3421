"""Label maps in picture files: which formats hold indices; all others are refused, whatever they hold."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from picture_files import save, save_pgm, save_tiff
from PIL import Image

from pspnet_fast.data import DatasetError, read_header, read_label
from pspnet_fast.data.classes import label_table

TABLE = label_table({0: 0, 1: 1}, (255,))


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
