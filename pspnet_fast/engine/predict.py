"""Label maps, colour maps and overlays of pictures on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pspnet_fast.data import eval_transform, read_image

from .config import Amp, EvalConfig
from .errors import InferenceError
from .inference import autocast, predict_labels
from .models import TrainedModel
from .pictures import colorize, overlay

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Written:
    """The files of one picture."""

    image: Path
    labels: Path  # 8-bit PNG, one class index a pixel
    colors: Path  # paletted PNG of the same indices
    overlay: Path


def find_images(paths: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """Each picture with the name, without suffix, that its results get; folders are searched to any depth.

    Raises:
        InferenceError: a path that does not exist, a folder without pictures, two pictures of one name.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise InferenceError(f"{path}: no such picture or folder")
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise InferenceError(f"{path}: holds no pictures ({', '.join(SUFFIXES)})")
        for file in files:
            name = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("")
            if name in found and found[name] != file:
                raise InferenceError(
                    f"{file} and {found[name]} would both be written as {name}.png; predict them into two folders"
                )
            found[name] = file
    return [(file, name) for name, file in found.items()]


def predict_paths(
    trained: TrainedModel,
    paths: Sequence[str | Path],
    out: str | Path,
    options: EvalConfig | None = None,
    *,
    amp: Amp = "none",
    progress: bool = False,
) -> list[Written]:
    """Predict pictures and write ``out/{labels,colors,overlay}/NAME.png``.

    Args:
        trained: on the device to use.
        options: scales, mirroring and window; those of the training configuration by default.

    Raises:
        InferenceError: see :func:`find_images`.
        DatasetError: a file that is not a picture.
    """
    images: Iterable[tuple[Path, Path]] = find_images(paths)
    if progress:
        from tqdm import tqdm

        images = tqdm(images, desc="predict", unit="image", disable=None)
    data = trained.config.data
    transform = eval_transform(data.mean, data.std)
    device = next(trained.model.parameters()).device
    written = []
    for path, name in images:
        image = read_image(path)
        normalised, _ = transform(image, torch.zeros(image.shape[1:], dtype=torch.uint8))
        batch = normalised[None].to(device, memory_format=torch.channels_last)
        with autocast(device, amp):
            labels = predict_labels(trained.model, batch, options or trained.config.eval)[0]
        written.append(_write(trained, path, image, labels.to(torch.uint8).cpu(), Path(out), name))
    return written


def _write(trained: TrainedModel, path: Path, image: Tensor, labels: Tensor, out: Path, name: Path) -> Written:
    places = [out / kind / name.with_name(f"{name.name}.png") for kind in ("labels", "colors", "overlay")]
    files = Written(path, *places)
    for file in (files.labels, files.colors, files.overlay):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.numpy()).save(files.labels)
    paletted = Image.fromarray(labels.numpy())
    paletted.putpalette([channel for color in trained.info.palette for channel in color])
    paletted.save(files.colors)
    Image.fromarray(overlay(image, colorize(labels, trained.info)).numpy()).save(files.overlay)
    return files
