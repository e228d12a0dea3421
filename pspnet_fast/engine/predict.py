"""Label maps, colour maps and overlays of pictures on disk."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pspnet_fast.data import DATASETS, IMAGE_SUFFIXES, DatasetError, DatasetInfo, ReadOptions, read_image
from pspnet_fast.data.check import list_problems
from pspnet_fast.data.files import expand, walk_files

from .config import Amp, EvalConfig
from .datasets import read_options
from .distributed import World
from .errors import InferenceError, is_out_of_memory
from .models import TrainedModel
from .outputs import OutputFolder, read_manifest
from .progress import watched


@dataclass(frozen=True)
class Written:
    """The files of one picture."""

    image: Path
    labels: Path  # 8-bit PNG, one class index a pixel
    colors: Path  # paletted PNG of the same indices
    overlay: Path
    probabilities: Path | None = None  # npz: float16 [C, H, W] of each class, and the names of the classes
    ids: Path | None = None  # PNG of the data set's own values, as its benchmark's server requires them


class IncompleteError(InferenceError):
    """Some pictures could not be predicted; ``written`` are the files of the others."""

    def __init__(self, message: str, written: list[Written]) -> None:
        super().__init__(message)
        self.written = written


def find_images(paths: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """Each picture with the name, without suffix, that its results get; folders are searched to any depth.

    What an earlier prediction wrote into one of the folders is not taken for a picture, unless ``paths`` names it.

    Raises:
        InferenceError: a path that does not exist, a folder without pictures, two pictures of one name.
    """
    found: dict[Path, Path] = {}
    for path in map(expand, paths):
        if not path.exists():
            raise InferenceError(f"{path}: no such picture or folder")
        files = _pictures(path) if path.is_dir() else [path]
        for file in files:
            name = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("")
            if name in found and found[name] != file:
                raise InferenceError(
                    f"{file} and {found[name]} would both be written as {name}.png; predict them into two folders"
                )
            found[name] = file
    return [(file, name) for name, file in found.items()]


def _pictures(folder: Path) -> list[Path]:
    files = [file for file in walk_files(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    above = {parent for file in files for parent in file.parents if parent.is_relative_to(folder)}
    predictions = {parent / name for parent in above for name in read_manifest(parent)}
    pictures = [file for file in files if file not in predictions]
    if not pictures:
        besides = f" except {len(files)} predictions" if files else ""
        raise InferenceError(f"{folder}: holds no pictures{besides} ({', '.join(IMAGE_SUFFIXES)})")
    return pictures


def predict_paths(
    trained: TrainedModel,
    paths: Sequence[str | Path],
    out: str | Path,
    options: EvalConfig | None = None,
    *,
    amp: Amp = "none",
    progress: bool = False,
    overwrite: bool = False,
    reading: ReadOptions | None = None,
    with_legend: bool = False,
    probabilities: bool = False,
    ids: bool = False,
    world: World | None = None,
) -> list[Written]:
    """Predict pictures and write ``out/{labels,colors,overlay}/NAME.png``, which lie as the picture is displayed.

    Args:
        trained: on the device to use.
        options: scales, mirroring and window; those of the training configuration by default.
        overwrite: replace files in ``out`` that no prediction wrote; an input is never replaced.
        reading: how the pictures are read; as in training by default.
        with_legend: append a strip below the overlay that names the classes present.
        probabilities: write ``out/probabilities/NAME.npz`` too.
        ids: write ``out/ids/NAME.png`` too: the label values of the data set (Cityscapes' labelIds, ADE20K's 1 to 150).
        world: the processes that share the pictures; each returns the files of all.

    Raises:
        InferenceError: see :func:`find_images` and :meth:`OutputFolder.prepare`; nothing has been written.
        IncompleteError: some pictures could not be read or predicted; the others are written.
    """
    world = world or World(trained.device)
    folder = OutputFolder(expand(out), overwrite=overwrite)
    jobs = _plan(paths, folder, world, probabilities=probabilities, ids=ids)
    table = file_values(trained) if ids else None
    reading = reading or read_options(trained.config.data)
    trained = replace(trained, model=trained.model.optimize_for_inference())
    written: dict[int, Written] = {}
    problems: dict[int, str] = {}

    share = range(world.rank, len(jobs), world.size)
    for index in watched(share, "predict", len(jobs), count=lambda _: world.size, enabled=progress and world.is_main):
        files = jobs[index]
        try:
            image = read_image(files.image, reading)
            shares = trained.probabilities(image, options, amp=amp) if probabilities else None
            labels = trained.predict(image, options, amp=amp) if shares is None else shares.argmax(0).to(torch.uint8)
        except DatasetError as error:
            problems[index] = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).split("\n", 1)[0]
            problems[index] = f"{files.image}: not enough memory ({reason}); predict it through a window, with --crop"
        else:
            _write(trained, folder, files, image, labels, with_legend=with_legend)
            if files.probabilities is not None and shares is not None:
                folder.write(files.probabilities, _npz(shares.half().numpy(), trained.info.classes))
            if files.ids is not None and table is not None:
                folder.write(files.ids, _png(table[labels.numpy()]))
            written[index] = files

    for theirs, failed in world.gather((written, problems)):
        written, problems = written | theirs, problems | failed
    results = [written[index] for index in sorted(written)]
    if problems:
        what = f"of {len(jobs)} pictures could not be predicted; {len(results)} are in {folder.folder}"
        raise IncompleteError(list_problems([problems[index] for index in sorted(problems)], what), results)
    return results


def _plan(
    paths: Sequence[str | Path], folder: OutputFolder, world: World, *, probabilities: bool, ids: bool
) -> list[Written]:
    """The pictures and their files, found and checked by one process before any of them writes."""
    jobs: list[Written] = []

    def check() -> None:
        for path, name in find_images(paths):
            png = name.with_name(f"{name.name}.png")
            labels, colors, mixed = (folder.folder / kind / png for kind in ("labels", "colors", "overlay"))
            npz = folder.folder / "probabilities" / f"{name}.npz" if probabilities else None
            jobs.append(Written(path, labels, colors, mixed, npz, folder.folder / "ids" / png if ids else None))
        extra = [file for job in jobs for file in (job.probabilities, job.ids) if file is not None]
        files = [file for job in jobs for file in (job.labels, job.colors, job.overlay)] + extra
        folder.prepare(files, [job.image for job in jobs])

    world.on_main(check)
    return world.agree(jobs)


def file_values(trained: TrainedModel) -> np.ndarray:
    """uint8 [256], uint16 if they need it: the value that the data set's label files have for each class.

    Raises:
        InferenceError: the labels of the data set are colours, or nothing is known of them.
    """
    own, source = trained.config.data.own, DATASETS.get(trained.info.name)
    table = own.table() if own is not None else source.layouts[-1].table if source and source.layouts else None
    if table is None:
        raise InferenceError(f"{trained.info.name}: the values in its label files are not known; leave --ids out")
    if not isinstance(table, np.ndarray):
        raise InferenceError(f"{trained.info.name}: its label files hold colours, as colors/ does; leave --ids out")
    values = np.zeros(256, np.int64)
    for value in reversed(range(len(table))):
        if 0 <= table[value] < trained.info.num_classes:
            values[table[value]] = value
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def _write(
    trained: TrainedModel, folder: OutputFolder, files: Written, image: Tensor, labels: Tensor, *, with_legend: bool
) -> None:
    mixed = overlay(image, colorize(labels, trained.info))
    if with_legend:
        mixed = torch.cat([mixed, legend(labels, trained.info)])
    folder.write(files.labels, _png(labels.numpy()))
    folder.write(files.colors, _png(labels.numpy(), trained.info.palette))
    folder.write(files.overlay, _png(mixed.numpy()))


def _png(pixels: np.ndarray, palette: Sequence[Sequence[int]] = ()) -> bytes:
    picture, content = Image.fromarray(pixels), io.BytesIO()
    if palette:
        picture.putpalette([channel for color in palette for channel in color])
    picture.save(content, "PNG")
    return content.getvalue()


def _npz(probabilities: np.ndarray, classes: Sequence[str]) -> bytes:
    content = io.BytesIO()
    np.savez(content, probabilities=probabilities, classes=np.array(classes))
    return content.getvalue()


def colorize(labels: Tensor, info: DatasetInfo) -> Tensor:
    """uint8 [H, W, 3] in the data set's palette from integer ``labels`` [H, W]; what is no class becomes black."""
    table = np.zeros((256, 3), np.uint8)
    table[: info.num_classes] = info.palette
    return torch.from_numpy(table[labels.cpu().numpy()])


def overlay(image: Tensor, colors: Tensor, opacity: float = 0.5) -> Tensor:
    """Blend uint8 ``image`` [3, H, W] and ``colors`` [H, W, 3] into uint8 [H, W, 3]."""
    below = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    return torch.from_numpy(np.array(Image.blend(below, Image.fromarray(colors.numpy()), opacity)))


def legend(labels: Tensor, info: DatasetInfo) -> Tensor:
    """The classes present in ``labels``, the most frequent first, as a strip uint8 [h, W, 3] as wide as the labels."""
    counts = torch.bincount(labels.flatten().long(), minlength=256)[: info.num_classes]
    present = [index for index in counts.argsort(descending=True, stable=True).tolist() if counts[index] > 0]
    width, line, gap = labels.shape[1], 16, 4
    font = ImageFont.load_default(size=11)
    places, x, y = [], gap, 0
    for index in present:
        needed = line + 2 * gap + math.ceil(font.getlength(info.classes[index]))
        if x + needed > width and x > gap:
            x, y = gap, y + line
        places.append((x, y, index))
        x += needed
    strip = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, index in places:
        draw.rectangle((x, y + 3, x + line - gap, y + line - 3), fill=info.palette[index], outline="black")
        draw.text((x + line, y + 1), info.classes[index], fill="black", font=font)
    return torch.from_numpy(np.array(strip))
