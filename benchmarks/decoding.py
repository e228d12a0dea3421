"""How long a picture takes to read: python -m benchmarks.decoding [--rounds 15]

A drawn street scene of 2048x1024 pixels and its label, as PNG and JPEG, by Pillow, torchvision.io and OpenCV (if it is
installed), and by this package with its checks: in turn, in one process, on one thread. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
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

from benchmarks.measure import interleaved
from pspnet_fast.data import read_image, read_label
from pspnet_fast.data.classes import label_table
from pspnet_fast.data.scenes import draw_scene

SIZE = (1024, 2048)
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


def table(files: list[Path], rounds: int) -> str:
    calls = {f"{name}/{file.name}": partial(read, file) for name, read in READERS.items() for file in files}
    times = {name: statistics.median(values) for name, values in interleaved(calls, rounds).items()}
    lines = [f"| 2048x1024 | {' | '.join(file.name for file in files)} |", "|:---|" + "---:|" * len(files)]
    for name in READERS:
        lines.append(f"| {name} | " + " | ".join(f"{times[f'{name}/{file.name}']:.1f} ms" for file in files) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(table(write_files(Path(folder)), rounds))


if __name__ == "__main__":
    main()
