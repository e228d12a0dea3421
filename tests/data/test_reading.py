"""Picture files: bit depths, bands and orientation; what cannot be read rightly is refused."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from picture_files import save, save_pgm, save_tiff
from PIL import Image, ImageOps

from pspnet_fast.data import DatasetError, ReadOptions, Sample, SegmentationDataset, read_header, read_image, read_label
from pspnet_fast.data.classes import DatasetInfo, label_table, voc_colormap

INFO = DatasetInfo("two", ("a", "b"), voc_colormap(2))
TABLE = label_table({0: 0, 1: 1}, (255,))


RAMP = np.linspace(0, 1, 24).reshape(4, 6)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tiff little-endian", "tiff big-endian"])
def test_16_bit_grey_is_scaled_by_what_it_holds(tmp_path: Path, kind: str, bits: int) -> None:
    samples = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    if kind == "png":
        path = save(tmp_path / "a.png", samples)
    else:
        path = save_tiff(tmp_path / "a.tif", samples, ">" if "big" in kind else "<")
    image = read_image(path)
    np.testing.assert_allclose(image.numpy(), np.broadcast_to(255 * RAMP, (3, 4, 6)), rtol=0, atol=0.55)
    assert image.max() == 255


@pytest.mark.parametrize("largest", [255, 1000, 65535])
def test_grey_with_a_stated_maximum(tmp_path: Path, largest: int) -> None:
    """The file says what white is, however dark the picture."""
    path = save_pgm(tmp_path / "a.pgm", np.rint(RAMP * largest / 2), largest)
    np.testing.assert_allclose(read_image(path)[0].numpy(), 255 * RAMP / 2, rtol=0, atol=1.1)


@pytest.mark.parametrize(
    ("samples", "mode", "found"),
    [
        (RAMP.astype(np.float32), "F", "0 .. 1"),
        ((RAMP * 4000).astype(np.int32), "I", "0 .. 4000"),
        (np.rint(RAMP * 2000 - 1000).astype(np.int16), "I", "-1000 .. 1000"),
    ],
)
def test_unknown_range_is_refused_unless_given(tmp_path: Path, samples: np.ndarray, mode: str, found: str) -> None:
    path = save_tiff(tmp_path / "a.tif", samples)
    message = rf"a.tif: mode {mode} with values {found}; .*data.value_range=\[.*--value-range"
    for read in (read_image, read_header):
        with pytest.raises(DatasetError, match=message):
            read(path)

    low, high = float(samples.min()), float(samples.max())
    image = read_image(path, ReadOptions(value_range=(low, high)))
    np.testing.assert_allclose(image[1].numpy(), 255 * RAMP, rtol=0, atol=1.1)
    assert read_header(path, ReadOptions(value_range=(low, high))).size == (6, 4)


def test_range_is_clipped_and_holds_for_16_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 100, 150, 200, 60000]], np.uint16))
    assert read_image(path, ReadOptions(value_range=(100, 200)))[0].tolist() == [[0, 0, 128, 255, 255]]


def test_16_bit_colours(tmp_path: Path) -> None:
    samples = np.stack([np.rint(RAMP * 65535)] * 3, -1).astype(np.uint16)
    image = read_image(save_tiff(tmp_path / "full.tif", samples))
    np.testing.assert_allclose(image[2].numpy(), 255 * RAMP, rtol=0, atol=1.1)


BANDS = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)


@pytest.mark.parametrize(
    ("samples", "tags", "message"),
    [
        (BANDS[..., :4], {"t338": 0}, r"4 bands: red, green, blue, and 1 not declared as alpha \(ExtraSamples: 0\)"),
        (BANDS[..., :4], {}, r"4 bands: red, green, blue, and 1 not declared as alpha \(ExtraSamples: missing\)"),
        (BANDS, {"t338": (2, 0)}, r"5 bands: red, green, blue, and 2 not declared as alpha"),
        (BANDS, {"t262": 5, "t338": 0}, r"5 bands: cyan, magenta, yellow, black, and 1 not declared"),
        (BANDS[..., :2], {"t262": 1, "t338": 0}, r"2 bands: grey, and 1 not declared as alpha"),
        (np.zeros((2, 3), np.uint16), {"t262": 0}, "in which 0 is white"),
        (np.zeros((2, 3), np.int8), {}, "signed 8-bit values"),
        (np.zeros((2, 3, 3), np.int8), {"t262": 8}, "LAB cannot be read as RGB|corrupt or no picture"),
        (np.full((2, 3, 3), 4095, np.uint16), {}, "at most 12 bits would be read almost black"),
        (np.array([[0.0, np.nan]], np.float32), {}, "not finite"),
    ],
)
def test_values_of_unknown_meaning_are_refused(tmp_path: Path, samples: np.ndarray, tags: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_image(save_tiff(tmp_path / "a.tif", samples, **tags), ReadOptions(value_range=(0, 1)))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    for path in (
        save_tiff(tmp_path / "a.tif", BANDS[..., :4], t338=2),
        save(tmp_path / "a.png", BANDS[..., :4]),
    ):
        np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), BANDS[..., :3])
    for mode in ("LA", "PA"):
        grey = Image.fromarray(BANDS[..., :2], "LA")
        path = tmp_path / f"{mode}.png"
        (grey if mode == "LA" else grey.convert("RGBA").quantize(8, method=2)).save(path)
        assert read_image(path).shape == (3, 2, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "LA.png")[2].numpy(), BANDS[..., 0])


@pytest.mark.parametrize("colors", [1, 3])
def test_colours_multiplied_by_alpha_are_divided_by_it(tmp_path: Path, colors: int) -> None:
    samples = np.full((2, 3, colors + 1), 60, np.uint8)
    samples[..., -1] = 128
    path = save_tiff(tmp_path / "a.tif", samples, t338=1, t262=2 if colors == 3 else 1)
    np.testing.assert_allclose(read_image(path).numpy(), np.full((3, 2, 3), 60 * 255 / 128), rtol=0, atol=1)


def test_print_colours_are_converted(tmp_path: Path) -> None:
    ink = np.zeros((2, 3, 4), np.uint8)
    ink[..., 0] = 255  # cyan alone
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[:, 0, 0].tolist() == [0, 255, 255]


def smooth(height: int, width: int) -> Image.Image:
    """A picture of smooth colours in which no two pixels are equal and no turn is a symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([10 * x, 10 * y, 60 + 3 * x + 5 * y], -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_images_are_turned_as_displayed(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = smooth(16, 24) if orientation < 5 else smooth(24, 16)
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a{suffix}"
    stored.save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {"lossless": True}))

    image = read_image(path).permute(1, 2, 0).numpy()
    assert image.shape == (16, 24, 3)
    np.testing.assert_array_equal(image, np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")))
    header = read_header(path)
    assert (header.size, header.stored_size, header.orientation) == ((24, 16), stored.size, orientation)

    # A label of the displayed picture fits; one of the stored rows is refused where its size tells.
    fits = save(tmp_path / "fits.png", np.ones((16, 24), np.uint8))
    assert SegmentationDataset(INFO, [Sample(path, fits)], TABLE)[0][1].shape == (16, 24)
    if orientation >= 5:
        lies = save(tmp_path / "lies.png", np.ones((24, 16), np.uint8))
        with pytest.raises(DatasetError, match=rf"lies.png: label is 16x24.*24x16.*EXIF orientation {orientation}"):
            SegmentationDataset(INFO, [Sample(path, lies)], TABLE)[0]


def test_unreadable_metadata_is_no_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth(16, 24).save(path, exif=b"Exif\0\0garbage")
    assert read_image(path).shape == (3, 16, 24)


def test_large_pictures_name_the_limit_and_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", np.zeros((20, 30), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    message = r"600 pixels\) exceeds limit of 400 pixels.*data.max_pixels.*--max-pixels"
    for read in (read_image, read_header, lambda path: read_label(path, TABLE)):
        with pytest.raises(DatasetError, match=message):
            read(path)
    with warnings.catch_warnings(record=True) as shown:  # restores the filters
        assert read_image(path, ReadOptions(max_pixels=600)).shape == (3, 20, 30)
    assert not shown


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"P5 3 4"])
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, read_header, lambda path: read_label(path, TABLE)):
        with pytest.raises(DatasetError, match=rf"{re.escape(str(path))}: corrupt or no picture"):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_random_byte_changes_give_a_picture_or_an_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    intact = save(tmp_path / f"a{suffix}", rng.integers(0, 2, (9, 7), np.uint8)).read_bytes()
    path = tmp_path / f"b{suffix}"
    for _ in range(40):
        content = bytearray(intact)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            content[position] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.2 else content)
        for read in (read_image, read_header, lambda path: read_label(path, TABLE)):
            with suppress(DatasetError):
                read(path)
