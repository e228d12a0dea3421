"""The first training steps on stock and on fused operators, each in a process of its own, step by step in turn.

A process each, so that peak memory is that of one road alone; in turn, so that both see the same machine however busy
it is: the parent lets one process make a step, then the next.

    python -m pspnet_fast.demo.roads CONFIG.yaml [PERTURBATION]

trains one step for each line read, answers each with its loss and seconds as a line of JSON, and at the end of the
input with the peak memory.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pspnet_fast.engine import ConfigError, TrainConfig, config_from_dict, dump_config, load_config
from pspnet_fast.engine.distributed import join_world
from pspnet_fast.engine.train import Trainer, chosen_backend
from pspnet_fast.machine import peak_memory

PLAIN, FUSED, CONTROL = "plain", "fused", "control"
# One unit in the last place of a float32 is 6e-8 of its value: what any other order of summation changes too.
PERTURBATION = 1e-7
WARM_UP = 2  # steps whose time does not count


@dataclass(frozen=True)
class Road:
    """What one process measured."""

    losses: list[float]
    seconds: float  # of a step, median
    peak_memory: int  # bytes: of the process, or of torch on a GPU


def measure_roads(config: TrainConfig, folder: Path, steps: int, seconds: float = math.inf) -> dict[str, Road]:
    """Train the first steps of ``config`` on stock operators, on fused ones, and on stock ones with rounded weights.

    Args:
        config: of the whole run; the same seed gives every road the same weights, crops and dropout.
        folder: gets a run folder for each road.
        steps: how many, unless ``seconds`` are over before.

    The third road, the control, starts from weights changed by :data:`PERTURBATION`: how far it drifts from the first
    is how far rounding alone carries a loss in so many steps.

    Raises:
        ConfigError: a process ended early.
    """
    with ExitStack() as stack:
        roads = {
            PLAIN: stack.enter_context(_Process(config, folder / PLAIN, "reference")),
            FUSED: stack.enter_context(_Process(config, folder / FUSED, "auto")),
            CONTROL: stack.enter_context(_Process(config, folder / CONTROL, "reference", PERTURBATION)),
        }
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in roads}
        deadline = time.monotonic() + seconds
        for step in range(steps):
            if step > WARM_UP and time.monotonic() > deadline:
                break
            for name, process in roads.items():
                answers[name].append(process.step())
        return {
            name: Road(
                [answer["loss"] for answer in answers[name]],
                statistics.median(
                    answer["seconds"] for answer in answers[name][min(WARM_UP, len(answers[name]) - 1) :]
                ),
                process.finish(),
            )
            for name, process in roads.items()
        }


class _Process:
    """A road's process; leaving the ``with`` block ends it."""

    def __init__(self, config: TrainConfig, folder: Path, backend: str, perturbation: float = 0.0) -> None:
        folder.mkdir(parents=True)
        tree = config.to_dict()
        tree["run"] |= {"folder": str(folder / "run"), "backend": backend}
        dump_config(config_from_dict(tree), folder / "config.yaml")
        command = [sys.executable, "-m", "pspnet_fast.demo.roads", str(folder / "config.yaml"), str(perturbation)]
        self.name, self.errors = folder.name, folder / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def step(self) -> dict[str, float]:
        """Have one step made: its loss and seconds."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the missing answer tells
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        return self._answer()

    def finish(self) -> int:
        """End the input; the peak memory in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return int(self._answer()["peak_memory"])

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            told = self.errors.read_text().strip().splitlines()
            raise ConfigError(
                f"the process that trains on {self.name} operators ended early: {told[-1] if told else 'no message'} "
                f"(all of it is in {self.errors})"
            )
        return json.loads(line)


class _PacedTrainer(Trainer):
    """Waits for a line of input before each step; leaves the run at the end of the input."""

    def _train_step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        if not sys.stdin.readline():
            raise _EndOfInput
        started = time.perf_counter()
        super()._train_step(images, labels, progress)
        loss = float(self.pending[-1][2][0])  # waits for a GPU too
        print(json.dumps({"loss": loss, "seconds": time.perf_counter() - started}), flush=True)


class _EndOfInput(Exception):  # noqa: N818
    """Not an error: the parent has seen enough steps."""


def main(arguments: Sequence[str]) -> None:
    """One road (see the module's docstring)."""
    config = load_config(arguments[0])
    folder = Path(str(config.run.folder))
    with join_world(config.run.device) as world, chosen_backend(config.run.backend):
        trainer = _PacedTrainer(config, folder, world, resume=False, started=time.monotonic())
        _perturb(trainer.state.model, float(arguments[1]))
        try:
            trainer.run()
        except _EndOfInput:
            print(json.dumps({"peak_memory": peak_memory(world.device)}), flush=True)
        finally:
            trainer.log.close()


def _perturb(model: nn.Module, relative: float) -> None:
    """Change every weight by about ``relative`` of its value; 0 changes nothing."""
    generator = torch.Generator().manual_seed(0)  # not the stream that dropout draws from
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.mul_(1 + relative * noise)


if __name__ == "__main__":
    main(sys.argv[1:])
