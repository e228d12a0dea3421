"""Writes pictures, also such as Pillow does not write."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def save_tiff(path: Path, samples: np.ndarray, order: str = "<", **tags: int | tuple[int, ...]) -> Path:
    """A baseline TIFF of one strip; tags by number, as in `t262=2`; [H, W] or [H, W, bands] of any type."""
    samples = samples.astype(samples.dtype.newbyteorder(order))
    height, width, bands = (*samples.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (8 * samples.itemsize,) * bands, 259: (1,), 262: (1 if bands == 1 else 2,),
        273: (8,), 277: (bands,), 278: (height,), 279: (samples.nbytes,), 339: (kind,) * bands,
    }  # fmt: skip
    entries |= {int(name[1:]): value if isinstance(value, tuple) else (value,) for name, value in tags.items()}
    directory = 8 + samples.nbytes  # behind the header and the pixels; behind it, what does not fit its entries
    table, more = b"", b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", directory + 2 + 12 * len(entries) + 4 + len(more))
            packed, more = place, more + packed
        table += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    count = struct.pack(f"{order}H", len(entries))
    path.write_bytes(header + samples.tobytes() + count + table + b"\0" * 4 + more)
    return path


def save_pgm(path: Path, samples: np.ndarray, largest: int) -> Path:
    height, width = samples.shape
    data = samples.astype(">u2" if largest > 255 else "u1").tobytes()
    path.write_bytes(f"P5 {width} {height} {largest}\n".encode() + data)
    return path


def save(path: Path, samples: np.ndarray, **options: object) -> Path:
    """A picture in a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(samples).save(path, **options)
    return path
