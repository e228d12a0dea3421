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
TABLE = label_table({index: index for index in range(255)}, (255,))
MODES = {"image": ("RGB", ImageReadMode.RGB), "label": ("L", ImageReadMode.GRAY)}


def pillow(path: Path) -> Tensor:
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert(MODES[path.stem][0])))
    return pixels if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def torchvision(path: Path) -> Tensor:
    return decode_image(read_file(str(path)), MODES[path.stem][1])


def opencv(path: Path) -> Tensor:
    import cv2

    if path.stem == "label":
        return torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    return torch.from_numpy(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)).permute(2, 0, 1).contiguous()


def ours(path: Path) -> Tensor:
    return read_label(path, TABLE) if path.stem == "label" else read_image(path)


READERS: dict[str, Callable[[Path], Tensor]] = {"Pillow": pillow, "torchvision.io": torchvision}
READERS |= {"OpenCV": opencv} if find_spec("cv2") else {}
READERS |= {"`pspnet_fast.data`, with its checks": ours}


def write_files(folder: Path) -> list[Path]:
    """A scene and its label."""
    image, label = draw_scene(0, SIZE)
    files = [folder / name for name in ("image.png", "image.jpg", "label.png")]
    for file, pixels in zip(files, (image, image, label), strict=True):
        Image.fromarray(pixels).save(file, quality=90)
    return files


def measured(files: list[Path]) -> str:
    calls = {f"{name}/{file.name}": partial(read, file) for name, read in READERS.items() for file in files}
    times = {name: f"{statistics.median(values):.1f} ms" for name, values in interleaved(calls, ROUNDS).items()}
    columns = [(file.name, "r", lambda row, file=file: times[f"{row['name']}/{file.name}"]) for file in files]
    return table([("2048x1024", "l", lambda row: row["name"]), *columns], [{"name": name} for name in READERS])


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(measured(write_files(Path(folder))))


if __name__ == "__main__":
    main()
