"""Checks of a whole data set: the header of every file before a run, every label on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pspnet_fast.data.classes import DatasetError
from pspnet_fast.data.dataset import SegmentationDataset
from pspnet_fast.data.labels import ColorTable, UnknownLabelError
from pspnet_fast.data.processes import mapped
from pspnet_fast.data.reading import Header, read_header

Watch = Callable[[Iterable[Any]], Iterable[Any]]
"""Shows how far an iteration is, as tqdm does."""


@dataclass
class Report:
    """What `check_dataset` found.

    Args:
        sizes: images by (width, height) as displayed.
        modes: files by kind, as in "image: JPEG RGB".
        pixels: int64 [256], pixels by train id over all labels; 255 are those that do not count.
        labels: int64 [256], labels that hold the train id.
        unknown: pixels by label value (or colour, as #rrggbb) that is no class.
        problems: one message a sample that cannot be used.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    pixels: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    labels: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    unknown: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def check_headers(dataset: SegmentationDataset, *, threads: int = 8) -> None:
    """Read the header of every file: whether it is there, is a picture of a kind that can be used, and of which size.

    Truncated pixels and wrong label values do not show in a header: `check_dataset` finds those.

    Raises:
        DatasetError: lists the samples that cannot be used.
    """
    Image.init()  # registers all formats before the threads do so at once
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda index: _survey_headers(dataset, index)[1], range(len(dataset)))
        problems = [problem for problem in results if problem is not None]
    if problems:
        raise DatasetError(list_problems(problems, f"of {len(dataset)} samples of {dataset.info.name} cannot be used"))


def check_dataset(
    dataset: SegmentationDataset, *, images: bool = False, workers: int = 0, watch: Watch = iter
) -> Report:
    """Read every header and every label, and with `images` every image.

    Args:
        workers: loader processes; 0 reads in this one.
        watch: wraps the iteration over the samples, to show progress.
    """
    report = Report()
    survey = partial(_survey, dataset, images)
    for headers, counts, unknown, problem in watch(mapped(survey, range(len(dataset)), workers)):
        for kind, header in headers.items():
            report.modes[f"{kind}: {header.format} {header.mode}"] += 1
        if "image" in headers:
            report.sizes[headers["image"].size] += 1
        report.unknown.update(unknown)
        if problem is not None:
            report.problems.append(problem)
        else:
            report.pixels += counts
            report.labels += counts > 0
    return report


def count_pixels(dataset: Any, *, workers: int = 0, rank: int = 0, ranks: int = 1) -> Tensor:
    """Pixels of each train id over the labels, int64 [256]; entry 255 counts those that are left out.

    Args:
        dataset: anything with a length and `read_label(index)`, as `SegmentationDataset`.
        workers: loader processes; 0 reads in this one.
        rank, ranks: which share of the samples to read; the shares' counts add up.

    Raises:
        DatasetError: a label that cannot be read.
    """
    counts = mapped(partial(_label_counts, dataset, False), range(rank, len(dataset), ranks), workers)
    return sum(counts, torch.zeros(256, dtype=torch.int64))


def list_problems(problems: Sequence[str], what: str, limit: int = 10) -> str:
    """A count with `what` it counts, and the first of the problems, a line each."""
    lines = [f"{len(problems)} {what}:", *problems[:limit]]
    if len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    return "\n".join(lines)


def _survey_headers(dataset: SegmentationDataset, index: int) -> tuple[dict[str, Header], str | None]:
    """The headers of a sample's files by kind, and what makes the sample unusable."""
    sample, headers = dataset.samples[index], {}
    try:
        headers["image"] = read_header(sample.image, dataset.reading)
        if sample.label is not None:
            colors = isinstance(dataset.table, ColorTable)
            headers["label"] = read_header(sample.label, dataset.reading, label=True, colors=colors)
            if headers["label"].size != headers["image"].size:
                dataset.read(index)  # raises, unless metadata behind the pixels turns one of the two
    except DatasetError as error:
        return headers, str(error)
    return headers, None


def _survey(
    dataset: SegmentationDataset, images: bool, index: int
) -> tuple[dict[str, Header], Tensor, dict[str, int], str | None]:
    """Headers, pixels of each train id, pixels of each unknown value, and problem of a sample."""
    headers, problem = _survey_headers(dataset, index)
    counts, unknown = torch.zeros(256, dtype=torch.int64), {}
    try:
        if problem is None:
            counts = _label_counts(dataset, images, index)
    except DatasetError as error:
        problem = str(error)
        unknown = error.counts if isinstance(error, UnknownLabelError) else {}
    return headers, counts, unknown, problem


def _label_counts(dataset: Any, images: bool, index: int) -> Tensor:
    label = dataset.read(index)[1] if images else dataset.read_label(index)
    return torch.bincount(torch.empty(0, dtype=torch.uint8) if label is None else label.flatten(), minlength=256)
