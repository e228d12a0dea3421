"""How long a picture takes to read: python -m benchmarks.decoding

A drawn street scene of 2048x1024 pixels and its label, as PNG and JPEG, by Pillow, torchvision.io and OpenCV (if it is
installed), and by this package with its checks: in turn, in one process, on one thread. Prints a table in Markdown.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from benchmarks.markdown import table
from benchmarks.measure import interleaved
from pspnet_fast.data import read_image, read_label
from pspnet_fast.data.classes import label_table
from pspnet_fast.data.scenes import draw_scene

SIZE, ROUNDS = (1024, 2048), 15
FILES = ("image.png", "image.jpg", "label.png")
TABLE = label_table({index: index for index in range(255)}, (255,))


def pillow(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return from_rows(np.array(picture.convert("L" if path.stem == "label" else "RGB")))


def torchvision(path: Path) -> Tensor:
    return decode_image(read_file(str(path)), ImageReadMode.GRAY if path.stem == "label" else ImageReadMode.RGB)


def opencv(path: Path) -> Tensor:
    import cv2

    if path.stem == "label":
        return from_rows(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    return from_rows(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))


def from_rows(pixels: np.ndarray) -> Tensor:
    """Rows of pixels as a tensor; the colours of an image come first."""
    tensor = torch.from_numpy(pixels)
    return tensor if tensor.dim() == 2 else tensor.permute(2, 0, 1).contiguous()


def ours(path: Path) -> Tensor:
    return read_label(path, TABLE) if path.stem == "label" else read_image(path)


READERS: dict[str, Callable[[Path], Tensor]] = {"Pillow": pillow, "torchvision.io": torchvision}
READERS |= {"OpenCV": opencv} if find_spec("cv2") else {}
READERS |= {"`pspnet_fast.data`, with its checks": ours}


def measured(folder: Path) -> str:
    """The table of a scene and its label, which are written into the folder."""
    image, label = draw_scene(0, SIZE)
    for file in FILES:
        Image.fromarray(label if "label" in file else image).save(folder / file, quality=90)
    calls = {(name, file): partial(read, folder / file) for name, read in READERS.items() for file in FILES}
    medians = {key: statistics.median(values) for key, values in interleaved(calls, ROUNDS).items()}
    columns = [(file, "r", lambda row, file=file: f"{medians[row['name'], file]:.1f} ms") for file in FILES]
    return table([("2048x1024", "l", lambda row: row["name"]), *columns], [{"name": name} for name in READERS])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        print(measured(Path(scratch)))
