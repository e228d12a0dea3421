"""An exported file is compared with its model before it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .program import ExportError, Options, first_line, logits_of
from .runtimes import Run

SIZES = ((65, 97), (130, 190), (129, 193))  # of files for any size; not those that the program was recorded at


@dataclass(frozen=True)
class Comparison:
    """The results of a file compared with its model's on random images of one size.

    Attributes:
        size: (height, width) of the images.
        difference: the largest difference of the logits; of labels also the most by which a pixel's label falls behind
            the best one in the model's logits. Relative to the model's largest logit.
        equal_labels: the share of pixels with the model's label.
    """

    batch: int
    size: tuple[int, int]
    difference: float
    equal_labels: float

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.batch} x {height}x{width}: difference {self.difference:.1e}, labels {self.equal_labels:.4%} equal"
        )


@torch.no_grad()
def compare(runs: Sequence[Run], model: nn.Module, options: Options, what: str, tolerance: float) -> list[Comparison]:
    """Run a file and ``model``, at three sizes where it takes any.

    Args:
        runs: of the file; of a file of labels also of the same graph up to its logits, since the labels of random
            images may be of one class whatever is wrong.

    Raises:
        ExportError: they differ by more than ``tolerance``.
    """
    sizes = [options.fitting(size) for size in (SIZES if options.size is None else SIZES[:1])]
    found = []
    for seed, size in enumerate(sizes):
        batch = options.batch or 1 + seed % 2
        images = options.images(batch, size, seed)
        with _explained("the model", batch, size):
            expected = logits_of(model(options.prepare(images)))
        with _explained(what, batch, size):
            actual = [torch.as_tensor(run(images.numpy())) for run in runs]
        both = [_differences(result, expected, what, result is actual[0] and options.labels) for result in actual]
        difference, equal_labels = max(d for d, _ in both), min(equal for _, equal in both)
        found.append(Comparison(batch, size, difference, equal_labels))
        if not found[-1].difference <= tolerance:
            raise ExportError(
                f"{what} differs from the model: {found[-1]}, where {tolerance:.0e} of the largest logit is allowed. "
                "Nothing was written"
            )
    return found


@contextmanager
def _explained(what: str, batch: int, size: tuple[int, int]) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # every model and runtime raises its own
        raise ExportError(
            f"{what} cannot run {batch} x {size[0]}x{size[1]} ({first_line(error)}). Give size=(height, width), or "
            "multiple=32 where the model takes multiples only. Nothing was written"
        ) from error


def _differences(actual: torch.Tensor, expected: torch.Tensor, what: str, are_labels: bool) -> tuple[float, float]:
    best, labels = expected.max(1)
    shape = labels.shape if are_labels else expected.shape
    if actual.shape != shape:
        raise ExportError(f"{what} gives {list(actual.shape)}, not {list(shape)}. Nothing was written")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    if are_labels:
        behind = best - expected.gather(1, actual.long()[:, None].clamp(0, expected.shape[1] - 1))[:, 0]
        return (behind.max() / scale).item(), (actual == labels).float().mean().item()
    equal = (actual.argmax(1) == labels).float().mean().item()
    return ((actual - expected).abs().max() / scale).item(), equal
