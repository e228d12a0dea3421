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
    kinds = {"u": 1, "i": 2, "f": 3}
    entries: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (8 * samples.itemsize,) * bands, 259: (1,), 262: (1 if bands == 1 else 2,),
        273: (0,), 277: (bands,), 278: (height,), 279: (samples.nbytes,), 339: (kinds[samples.dtype.kind],) * bands,
    }  # fmt: skip
    entries |= {int(name[1:]): value if isinstance(value, tuple) else (value,) for name, value in tags.items()}
    start = 8 + 2 + 12 * len(entries) + 4
    extra, table = b"", b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values) if tag != 273 else b""
        field = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", start + len(extra))
        extra += packed if len(packed) > 4 else b""
        table += struct.pack(f"{order}HHI", tag, 4 if tag == 273 else 3, len(values)) + field
    table = table.replace(struct.pack(f"{order}HHI", 273, 4, 1) + b"\0" * 4,
                          struct.pack(f"{order}HHII", 273, 4, 1, start + len(extra)))  # fmt: skip
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    path.write_bytes(header + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4 + extra + samples.tobytes())
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
