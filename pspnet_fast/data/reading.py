"""Picture files as tensors: images in 8-bit RGB as they are displayed, label maps as train ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pspnet_fast.data.classes import DatasetError
from pspnet_fast.data.decoding import (
    DEFAULT_READING,
    PHOTOMETRIC,
    ReadOptions,
    check_bands,
    decoded,
    exif_orientation,
    opened,
)
from pspnet_fast.data.labels import check_label

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")

# The modes that hold 8-bit colours, and those that `value_range` maps to 8 bits.
_COLOR_MODES = ("1", "L", "P", "RGB", "LA", "La", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_DEPTHS = (8, 10, 12, 14, 16)  # bits of a sample that scanners, cameras and detectors deliver


@dataclass(frozen=True)
class Header:
    """What a picture file says before its pixels: its size (width, height) as displayed, and how it is stored."""

    size: tuple[int, int]
    mode: str
    format: str
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """The size of the stored rows."""
        return (self.size[1], self.size[0]) if self.orientation >= 5 else self.size


def read_header(
    path: Path, options: ReadOptions = DEFAULT_READING, *, label: bool = False, colors: bool = False
) -> Header:
    """The header of an image file, or of a label file of indices or `colors`.

    Raises:
        DatasetError: no such file, no picture, more pixels than allowed, or a kind of picture that `read_image` (or
            `read_label`) refuses.
    """
    with opened(path, options) as picture:
        if label:
            check_label(path, picture, colors=colors)
        else:
            _check_image(path, picture)
        orientation = exif_orientation(picture)
        turned = orientation >= 5 and picture.format != "TIFF"  # Pillow has turned the size of a TIFF
        size = (picture.height, picture.width) if turned else picture.size
        header = Header(size, picture.mode, str(picture.format), orientation)
    if not label and header.mode in ("I", "F") and options.value_range is None:
        read_image(path, options)  # whether a range is needed, and which, the pixels say
    return header


def read_image(path: Path, options: ReadOptions = DEFAULT_READING) -> Tensor:
    """An image file as uint8 [3, H, W], RGB, values 0 .. 255, turned as its EXIF orientation says; alpha is dropped.

    Raises:
        DatasetError: the file is missing or corrupt, exceeds `options.max_pixels`, has bands that are neither colours
            nor alpha, or holds values whose range is not known.
    """
    with opened(path, options) as picture:
        _check_image(path, picture)
        coded = str(picture.tile[0][3]) if picture.tile else ""
        stored = decoded(path, picture)
        if stored.mode in _DEEP_MODES:
            grey = _to_8_bits(path, np.asarray(stored), str(picture.format), stored.mode, options.value_range)
            array = np.repeat(grey[..., None], 3, axis=2)
        else:
            straight = stored.convert(stored.mode.upper()) if stored.mode in ("RGBa", "La") else stored
            array = np.asarray(straight if straight.mode == "RGB" else straight.convert("RGB"))
            # Pillow keeps the upper 8 bits of 16-bit colours: right, unless they are 12 bits in 16.
            if ";16" in coded and array.max(initial=0) < 16:
                raise DatasetError(
                    f"{path}: 16-bit colours that fill at most 12 bits would be read almost black; "
                    "save the picture with 8 bits a sample, or scale its values to 0 .. 65535"
                )
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))  # twice as fast as torch's contiguous()


def _check_image(path: Path, picture: Any) -> None:
    tags = check_bands(path, picture)
    if picture.mode not in (*_COLOR_MODES, *_DEEP_MODES):
        raise DatasetError(f"{path}: mode {picture.mode} cannot be read as RGB; save the picture as 8-bit RGB")
    if picture.mode in _DEEP_MODES and tags.get(PHOTOMETRIC) == 0:
        raise DatasetError(f"{path}: a TIFF of mode {picture.mode} in which 0 is white; save it with 0 as black")


def _to_8_bits(
    path: Path, values: np.ndarray, file_format: str, mode: str, value_range: tuple[float, float] | None
) -> np.ndarray:
    """Samples of more than 8 bits as uint8, by the range that is given or that their number of bits implies."""
    sixteen_bits = mode.startswith("I;16") or file_format in ("PNG", "PPM")  # PNG and PPM have no more
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DatasetError(f"{path}: mode {mode} with values that are not finite; replace them")
    if value_range is None:
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        if not sixteen_bits:
            raise DatasetError(
                f"{path}: mode {mode} with values {low:g} .. {high:g}; say what is black and white, with "
                f"data.value_range=[{low:g},{high:g}] (predict: --value-range {low:g},{high:g}), or save it with 8 bits"
            )
        depth = 16 if file_format == "PPM" else next(bits for bits in _DEPTHS if high < 2**bits)  # Pillow scales PPM
        value_range = (0, 2**depth - 1)

    low, high = value_range
    scaled: np.ndarray = values.astype(np.float32) if sixteen_bits else values.astype(np.float64)
    scaled = (scaled - low) * (255 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
