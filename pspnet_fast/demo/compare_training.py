"""The same training on stock PyTorch operators and on fused ones, step by step: losses, time, memory, mIoU.

Three runs from one seed, which have the same weights, crops and dropout:

- "plain": every operator is composed of stock PyTorch operators (``use_backend("reference")``);
- "fused": the fastest back end of the machine;
- "control": plain too, but from weights changed in their last digit. Training amplifies rounding, so that two runs part
  after some steps whatever computes them; the control shows how far rounding alone leads.

Each run is a process of its own, so that its peak memory is its own; they take their steps in turn, so that all see the
same machine however busy it is.

    python -m pspnet_fast.demo.compare_training CONFIG.yaml OPTIONS

is such a process. It obeys the lines it reads, "step", "validate" or "end", and answers each with a line of JSON: what
it measured, at the end its peak memory.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from pspnet_fast.engine import ConfigError, TrainConfig, config_from_dict, dump_config, evaluate, load_config
from pspnet_fast.engine.distributed import join_world
from pspnet_fast.engine.run_data import RunData
from pspnet_fast.engine.train import Trainer, chosen_backend
from pspnet_fast.machine import peak_memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAIN, FUSED, CONTROL = "plain", "fused", "control"
BACKENDS = {PLAIN: "reference", FUSED: "auto", CONTROL: "reference"}
COLORS = {PLAIN: "#8a8f98", FUSED: "#d1495b", CONTROL: "#30638e"}
WARM_UP = 2  # steps whose time does not count


@dataclass
class Run:
    """What one process measured.

    Attributes:
        losses: of every step, main + λ · auxiliary.
        seconds: of a step, median.
        peak_memory: bytes: of the process, or of torch on a GPU.
        miou: (step, mean intersection over union) of each validation.
    """

    losses: list[float]
    seconds: float
    peak_memory: int
    miou: list[tuple[int, float]] = field(default_factory=list)

    def largest_difference(self, other: Run) -> float:
        """From another run's loss, in any step; NaN where one of them is."""
        gaps = torch.tensor(self.losses, dtype=torch.float64) - torch.tensor(other.losses, dtype=torch.float64)
        return float(gaps.abs().max())


def compare(
    config: TrainConfig,
    folder: Path,
    steps: int,
    *,
    dtype: str = "float32",
    seconds: float = math.inf,
    validate_every: int = 0,
    val_images: int = 25,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Run]:
    """Train the first steps of ``config`` three times.

    Args:
        config: of the whole run; its folder and back end are replaced.
        folder: for configurations, records and errors of the three.
        steps: how many; fewer where ``seconds`` are over before.
        dtype: of weights and arithmetic, "float32" or "float64".
        validate_every: steps between two validations, which the last step is followed by too; 0 validates never.
        val_images: how many images of the validation split count, at even distances; at most all of them.
        progress: receives a line after each step.

    Raises:
        ConfigError: a process ended early.
    """
    options = {"dtype": dtype, "val_images": val_images}
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(Process(config, folder / name, name, options)) for name in (PLAIN, FUSED, CONTROL)
        }
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        miou: dict[str, list[tuple[int, float]]] = {name: [] for name in runs}
        deadline = time.monotonic() + seconds
        for step in range(1, steps + 1):
            if step > WARM_UP + 1 and time.monotonic() > deadline:
                break
            for name, process in runs.items():
                answers[name].append(process.ask("step"))
            progress(_line(f"{dtype} step {step:4d}", {name: found[-1]["loss"] for name, found in answers.items()}))
            if validate_every and (step % validate_every == 0 or step == steps):
                for name, process in runs.items():
                    miou[name].append((step, process.ask("validate")["miou"]))
                progress(_line(f"{dtype} mIoU     ", {name: found[-1][1] for name, found in miou.items()}))
        return {
            name: Run(
                [answer["loss"] for answer in found],
                statistics.median(answer["seconds"] for answer in found[min(WARM_UP, len(found) - 1) :]),
                int(runs[name].ask("end")["peak_memory"]),
                miou[name],
            )
            for name, found in answers.items()
        }


def _line(title: str, values: Mapping[str, float]) -> str:
    """The plain run's value, and by how much the others differ from it."""
    others = (f"{name} {values[name] - values[PLAIN]:+.2e}" for name in (FUSED, CONTROL))
    return "  ".join([title, f"{PLAIN} {values[PLAIN]:.10f}", *others])


class Process:
    """One run's process; leaving the ``with`` block ends it."""

    def __init__(self, config: TrainConfig, folder: Path, name: str, options: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True)
        tree = config.to_dict()
        tree["run"] |= {"folder": str(folder / "run"), "backend": BACKENDS[name]}
        dump_config(config_from_dict(tree), folder / "config.yaml")
        words = json.dumps({**options, "perturbed": name == CONTROL})
        command = [sys.executable, "-m", "pspnet_fast.demo.compare_training", str(folder / "config.yaml"), words]
        self.name, self.errors = name, folder / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with suppress(BrokenPipeError), self.process:  # closes the pipes, and waits
            pass

    def ask(self, command: str) -> Any:
        """Send a command; its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: there is no answer
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            reason = (self.errors.read_text().strip().splitlines() or ["no message"])[-1]
            raise ConfigError(
                f"the process that trains on {self.name} operators ended early: {reason} (details: {self.errors})"
            )
        return json.loads(line)


# ---- the process -----------------------------------------------------------------------------------------------------


class _ObedientTrainer(Trainer):
    """Trains a step for each "step" that it reads, validates for each "validate"; ends at "end" or without input."""

    options: Mapping[str, Any]

    def prepare(self, options: Mapping[str, Any]) -> None:
        """Set the dtype, and change the control's weights by about the dtype's last digit."""
        self.options, self.dtype = options, getattr(torch, options["dtype"])
        model = self.state.model.to(self.dtype)
        if options["perturbed"]:
            perturb(model, torch.finfo(self.dtype).eps)

    def _obey(self) -> None:
        """Return for "step"."""
        while (command := sys.stdin.readline().strip()) == "validate":
            answer({"miou": self.miou()})
        if command != "step":
            raise _End

    def _validate(self) -> None:
        """After the last step of the configuration."""
        self._obey()

    def _train_step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        self._obey()
        started = time.perf_counter()
        super()._train_step(images.to(self.dtype), labels, progress)
        loss = float(self.pending[-1][2][0])  # waits for a GPU too
        answer({"loss": loss, "seconds": time.perf_counter() - started})

    def miou(self) -> float:
        """Of images at even distances through the validation split, each at its full size."""
        assert self.val_loader is not None
        whole = self.val_loader.dataset
        size = len(whole)  # type: ignore[arg-type]
        count = min(self.options["val_images"], size)
        subset = Subset(whole, [index * size // count for index in range(count)])
        model = copy.deepcopy(self.state.model).float()
        return evaluate(model, subset, self.config.eval, info=self.info, amp=self.config.run.amp).miou


class _End(Exception):  # noqa: N818
    """Not an error: the parent has seen enough steps."""


def answer(values: Mapping[str, float]) -> None:
    print(json.dumps(values), flush=True)


def perturb(model: nn.Module, relative: float) -> None:
    """Change every weight by about ``relative`` of its value."""
    generator = torch.Generator().manual_seed(0)  # not the stream that dropout draws from
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(1 + relative * noise.to(parameter.device))


def main(arguments: Sequence[str]) -> None:
    """One run (see the module's docstring)."""
    config = load_config(arguments[0])
    with join_world(config.run.device) as world, chosen_backend(config.run.backend):
        folder = Path(str(config.run.folder))
        data = RunData.of_configuration(config, folder, world)
        trainer = _ObedientTrainer(config, data, folder, world, resume=False, started=time.monotonic())
        trainer.prepare(json.loads(arguments[1]))
        try:
            trainer.run()
        except _End:
            answer({"peak_memory": peak_memory(world.device)})
        finally:
            trainer.log.close()


# ---- picture ---------------------------------------------------------------------------------------------------------


def plot_losses(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    """The losses of all runs by step; the widest line below, so that all can be seen where they coincide."""
    for name, width in ((PLAIN, 4.0), (CONTROL, 2.0), (FUSED, 1.0)):
        steps = range(1, len(losses[name]) + 1)
        axes.plot(steps, losses[name], color=COLORS[name], linewidth=width, label=name)
    axes.set(xlabel="step", ylabel="main + λ · auxiliary loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(sys.argv[1:])
