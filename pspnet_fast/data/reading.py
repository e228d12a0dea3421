"""Picture files read by Pillow, with errors that name the file: as RGB of 8 bits, or as what they store."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from pspnet_fast.data.classes import DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")

# The modes that hold 8-bit colours, and those that `value_range` maps to 8 bits.
_IMAGE_MODES = ("1", "L", "P", "RGB", "LA", "La", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_DEPTHS = (8, 10, 12, 14, 16)  # bits of a sample that scanners, cameras and detectors deliver

# Indices survive these alone: a GIF renumbers its colours, and a TIFF may hold JPEG data.
_LOSSLESS_FORMATS = ("PNG", "TIFF", "BMP", "PPM", "TGA")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")
_INDEX_MODES = ("L", "P", "1", "I;16", "I;16B", "I;16L", "I;16N", "I")
_COLOR_MODES = ("L", "P", "1", "LA", "PA", "RGB", "RGBA")

# What Pillow raises for files that are cut off, garbled, or no pictures at all.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)

# EXIF orientation -> how the stored rows are turned for display.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF tags: number of the first, and the bands that each photometric interpretation names.
_PHOTOMETRIC, _BANDS, _EXTRA_BANDS, _SAMPLE_FORMAT = 262, 277, 338, 339
_COLOR_BANDS = {0: "grey", 1: "grey", 2: "red, green, blue", 3: "palette index", 4: "mask",
                5: "cyan, magenta, yellow, black", 6: "Y, Cb, Cr", 8: "L, a, b"}  # fmt: skip
_ALPHA = (1, 2)  # values of ExtraSamples


@dataclass(frozen=True)
class ReadOptions:
    """How picture files are read.

    Args:
        value_range: (low, high) of pictures with more than 8 bits a sample, mapped to 0 .. 255. Without it, 16-bit grey
            is scaled by the number of bits its largest value needs; floats and 32-bit integers are refused.
        max_pixels: largest picture; None keeps Pillow's limit, 178,956,970 pixels.
    """

    value_range: tuple[float, float] | None = None
    max_pixels: int | None = None


DEFAULT_READING = ReadOptions()


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
        coded, stored = raw_mode(picture), decoded(path, picture)
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
    if picture.mode not in (*_IMAGE_MODES, *_DEEP_MODES):
        raise DatasetError(f"{path}: mode {picture.mode} cannot be read as RGB; save the picture as 8-bit RGB")
    if picture.mode in _DEEP_MODES and tags.get(_PHOTOMETRIC) == 0:
        raise DatasetError(f"{path}: a TIFF of mode {picture.mode} in which 0 is white; save it with 0 as black")


def check_label(path: Path, picture: Any, *, colors: bool = False) -> None:
    """Raise DatasetError for a kind of file that does not keep class indices, or colours."""
    compression = picture.info.get("compression", "raw") if picture.format == "TIFF" else "raw"
    if picture.format not in _LOSSLESS_FORMATS or compression in _LOSSY_TIFF:
        kind = picture.format if compression == "raw" else f"{picture.format} with {compression} compression"
        raise DatasetError(
            f"{path}: a label map in {kind}, which does not keep class indices; write the label as PNG, from its source"
        )
    tags = check_bands(path, picture)
    if colors and picture.mode not in _COLOR_MODES:
        raise DatasetError(f"{path}: label has mode {picture.mode}, expected 8-bit colours; or set data.labels=indices")
    if not colors and picture.mode not in _INDEX_MODES:
        raise DatasetError(
            f"{path}: label has mode {picture.mode}, expected one channel of class indices; save it as an 8-bit grey "
            "or paletted PNG, or describe its colours (data.name=folder with data.labels=colors)"
        )
    if tags.get(_PHOTOMETRIC) == 0 or (picture.format == "PPM" and picture.tile[0][0] != "raw"):
        raise DatasetError(
            f"{path}: a {picture.format} whose values are scaled or inverted for display; save it as PNG"
        )


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


def opened(path: Path, options: ReadOptions) -> Any:
    """The file with its header read."""
    if options.max_pixels is not None:
        # Pillow warns from its limit on and refuses from twice as many; every process that reads sets it anew.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, -(-options.max_pixels // 2))
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: not found; it was there when the data set was opened") from None
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{path}: {str(error).split(',')[0]}; if the file can be trusted, raise the limit with data.max_pixels "
            "(predict: --max-pixels)"
        ) from error
    except _DECODE_ERRORS as error:
        raise _corrupt(path, error) from error


def decoded(path: Path, picture: Any) -> Any:
    """The picture decoded to its last row (opening alone misses truncation), its rows turned for display."""
    try:
        picture.load()
        if picture.format == "PNG":  # decoding does not compare the checksums of the pixels
            with Image.open(path) as file:
                file.verify()
        turn = _TURNS.get(exif_orientation(picture))  # Pillow has turned TIFFs, and removed their tag
        return picture if turn is None else picture.transpose(turn)
    except _DECODE_ERRORS as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: corrupt or no picture that Pillow can read ({error}); fetch the file again or remove the pair"
    )


def exif_orientation(picture: Any) -> int:
    """EXIF orientation 1 .. 8; 1 where the file has none, or metadata that cannot be read (as viewers do)."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return 1
    return value if value in _TURNS else 1


def raw_mode(picture: Any) -> str:
    """How Pillow's decoder finds the samples in the file, as in "L;4"."""
    args = picture.tile[0][3] if picture.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def check_bands(path: Path, picture: Any) -> dict[int, Any]:
    """The tags of a TIFF ({} for other files), after a check that every band is a colour or declared as alpha."""
    if picture.format != "TIFF":
        return {}
    tags: dict[int, Any] = picture.tag_v2
    colors = _COLOR_BANDS.get(tags.get(_PHOTOMETRIC, 1), "grey")
    declared = tuple(tags.get(_EXTRA_BANDS, ()))
    extra = tags.get(_BANDS, 1) - len(colors.split(", "))
    if extra > 0 and not (extra == 1 and len(declared) == 1 and declared[0] in _ALPHA):
        raise DatasetError(
            f"{path}: a TIFF of {tags[_BANDS]} bands: {colors}, and {extra} not declared as alpha "
            f"(ExtraSamples: {', '.join(map(str, declared)) or 'missing'}); keep only the bands that the network reads"
        )
    if picture.mode == "L" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 2:
        raise DatasetError(f"{path}: a TIFF of signed 8-bit values; save it with unsigned ones")
    return tags
