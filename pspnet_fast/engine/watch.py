"""Progress of an iteration over images, on a terminal and in a log."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_SECONDS = 30.0  # between two lines where standard error is no terminal


def watched(
    batches: Iterable[T], name: str, total: int, *, count: Callable[[T], int] = lambda batch: 1, enabled: bool = True
) -> Iterator[T]:
    """The ``batches``; a bar shows how many of the ``total`` images are done, or a line now and then in a log.

    Args:
        count: images of a batch.
        enabled: whether anything is shown; off on all ranks but one.
    """
    if not enabled:
        yield from batches
        return
    done, started = 0, time.monotonic()
    shown, terminal = started, sys.stderr.isatty()
    if not terminal:
        _line(f"{name}: {total} images")
    with tqdm(total=total, desc=name, unit="image", leave=False, disable=not terminal) as bar:
        for batch in batches:
            yield batch
            done += count(batch)
            bar.update(count(batch))
            now = time.monotonic()
            if not terminal and now - shown >= LINE_SECONDS:
                shown, rate = now, done / max(now - started, 1e-9)
                left = datetime.timedelta(seconds=round(max(0, total - done) / rate))
                _line(f"{name}: {min(done, total)} of {total} images, {rate:.1f} images/s, {left} left")


def _line(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
