"""How far a run is: by steps, by time, over restarts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .config import TrainConfig
from .distributed import World


@dataclass
class Clock:
    """Decides the schedule's progress and the end of a run, alike on every rank.

    Args:
        started: ``time.monotonic()`` of this start.
        before: seconds that earlier starts of the run took.
        total_steps: the planned number of steps; ``None`` where only time ends the run.
    """

    config: TrainConfig
    world: World
    started: float
    total_steps: int | None
    before: float = 0.0

    def elapsed(self) -> float:
        """Seconds of the run up to now, validations and earlier starts included; rank 0's reading."""
        return self.world.agree_on_number(self.before + time.monotonic() - self.started)

    def progress(self, step: int, elapsed: float) -> float:
        """0 … 1, what the learning rate follows (``optim.schedule_by``)."""
        by_time = self.config.optim.schedule_by == "time"
        return self._time_share(elapsed) if by_time else self._step_share(step)

    def share(self, step: int, elapsed: float) -> float:
        """0 … 1, how much of the run is done, by the limit that is nearer."""
        return max(self._time_share(elapsed), self._step_share(step))

    def left(self, elapsed: float, step: int, seconds_a_step: float) -> float | None:
        """Seconds to the end of training, as far as a limit tells."""
        ends = []
        if self.config.run.max_minutes is not None:
            ends.append(60 * self.config.run.max_minutes - elapsed)
        if self.total_steps is not None:
            ends.append((self.total_steps - step) * seconds_a_step)
        return max(0.0, min(ends)) if ends else None

    def _time_share(self, elapsed: float) -> float:
        limit = self.config.run.max_minutes
        return 0.0 if limit is None else min(1.0, elapsed / (60 * limit))

    def _step_share(self, step: int) -> float:
        return 0.0 if self.total_steps is None else min(1.0, step / self.total_steps)


def planned_steps(config: TrainConfig, steps_per_epoch: int) -> int | None:
    """``run.max_steps`` or ``run.epochs``, whichever ends first; ``None`` if neither is set."""
    ends = [] if config.run.max_steps is None else [config.run.max_steps]
    ends += [] if config.run.epochs is None else [config.run.epochs * steps_per_epoch]
    return min(ends, default=None)
