"""How far a run is and how fast it goes, by steps, by time, over restarts; the same of any iteration over images."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from .config import TrainConfig
from .distributed import World

T = TypeVar("T")
LINE_SECONDS = 30.0  # between two lines where standard error is no terminal


class Progress:
    """Decides the schedule's progress and the end of a run, alike on every rank, and measures its parts.

    Args:
        steps_per_epoch: batches of the training set.
        started: ``time.monotonic()`` of this start.
        before: seconds that earlier starts of the run took.

    Attributes:
        total_steps: ``run.max_steps`` or ``run.epochs``, whichever ends first; ``None`` where only time ends the run.
    """

    def __init__(
        self, config: TrainConfig, world: World, steps_per_epoch: int, *, started: float, before: float
    ) -> None:
        run = config.run
        self.config, self.world, self.started, self.before = config, world, started, before
        ends = [run.max_steps, None if run.epochs is None else run.epochs * steps_per_epoch]
        self.total_steps = min((end for end in ends if end is not None), default=None)
        self.validation_steps = run.validate_every * steps_per_epoch  # 0: only after the last step
        self._seconds = {"step": 0.0, "validation": 0.0, "save": 0.0}
        self._counts = dict.fromkeys(self._seconds, 0)

    def elapsed(self) -> float:
        """Seconds of the run up to now, validations and earlier starts included; alike on every rank."""
        return self.world.maximum(self.before + time.monotonic() - self.started)

    def schedule(self, step: int, elapsed: float) -> float:
        """0 … 1, what the learning rate follows (``optim.schedule_by``)."""
        by_time = self.config.optim.schedule_by == "time"
        return self._time_share(elapsed) if by_time else self._step_share(step)

    def share(self, step: int, elapsed: float) -> float:
        """0 … 1, how much of the run is done, by the limit that is nearer."""
        return max(self._time_share(elapsed), self._step_share(step))

    def validation_due(self, step: int, elapsed: float) -> bool:
        """Whether ``step`` ends the run, or an epoch after which to validate."""
        ends_epoch = step > 0 and self.validation_steps > 0 and step % self.validation_steps == 0
        return ends_epoch or self.share(step, elapsed) >= 1

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the block, and its time, as a "step", a "validation" or a "save"."""
        begun = time.monotonic()
        yield
        self._seconds[part] += time.monotonic() - begun
        self._counts[part] += 1

    def images_per_second(self, *, overall: bool = False) -> float:
        """Of the training steps alone, or ``overall`` with validations and checkpoints; 0 before the first."""
        seconds = sum(self._seconds.values()) if overall else self._seconds["step"]
        return self._counts["step"] * self.config.optim.batch_size / max(seconds, 1e-9)

    def seconds_left(self, step: int, elapsed: float) -> float | None:
        """To the end of training, with the validations and checkpoints until then, as far as a limit tells."""
        ends = []
        if self.config.run.max_minutes is not None:
            ends.append(60 * self.config.run.max_minutes - elapsed)
        if self.total_steps is not None:
            every, saves = self.validation_steps or self.total_steps, self.config.run.save_every_steps
            left = {
                "step": self.total_steps - step,
                "validation": -(-self.total_steps // every) - step // every,
                "save": self.total_steps // saves - step // saves,
            }
            ends.append(sum(n * self._seconds[part] / max(1, self._counts[part]) for part, n in left.items()))
        return max(0.0, min(ends)) if ends else None

    def _time_share(self, elapsed: float) -> float:
        limit = self.config.run.max_minutes
        return 0.0 if limit is None else min(1.0, elapsed / (60 * limit))

    def _step_share(self, step: int) -> float:
        return 0.0 if self.total_steps is None else min(1.0, step / self.total_steps)


def remaining(seconds: float | None) -> str:
    """As in 1:02:03, or a question mark."""
    return "?" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


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
    done, started, terminal = 0, time.monotonic(), sys.stderr.isatty()
    shown, line = started, partial(tqdm.write, file=sys.stderr)
    if not terminal:
        line(f"{name}: {total} images")
    with tqdm(total=total, desc=name, unit="image", leave=False, disable=not terminal) as bar:
        for batch in batches:
            yield batch
            done += count(batch)
            bar.update(count(batch))
            now = time.monotonic()
            if not terminal and now - shown >= LINE_SECONDS:
                shown, rate = now, done / max(now - started, 1e-9)
                left = remaining(max(0, total - done) / rate)
                line(f"{name}: {min(done, total)} of {total} images, {rate:.1f} images/s, {left} left")
