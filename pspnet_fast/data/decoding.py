"""Picture files opened and decoded by Pillow: errors that name the file, rows as they are displayed, TIFF's bands."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from pspnet_fast.data.classes import DatasetError

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
PHOTOMETRIC, _BANDS, _EXTRA_BANDS, _SAMPLE_FORMAT = 262, 277, 338, 339
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
        raise corrupt(path, error) from error


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
        raise corrupt(path, error) from error


def corrupt(path: Path, error: Exception) -> DatasetError:
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
    colors = _COLOR_BANDS.get(tags.get(PHOTOMETRIC, 1), "grey")
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
