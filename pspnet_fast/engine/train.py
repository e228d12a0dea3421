"""Training: the loop, its records and its checkpoints."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from pspnet_fast import check_labels, use_backend
from pspnet_fast.data import DatasetInfo
from pspnet_fast.machine import peak_memory

from .checkpoint import claimed, run_folder
from .config import TrainConfig
from .config_io import dump_config
from .distributed import StopRequest, World, join_world
from .errors import DivergedError
from .evaluate import Metrics, eval_loader, evaluate_loader, validation_panels
from .inference import autocast
from .optim import schedule_factor, set_rates, training_class_weights
from .progress import Progress, remaining
from .run_data import RunData, StepSampler, train_loader
from .run_log import RunLog, draw_losses
from .state import TrainingState


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` leaves: its folder (``last.pt``, ``best.pt``, tables, TensorBoard) and the closing numbers."""

    folder: Path
    step: int
    minutes: float
    best_miou: float  # of best.pt; nan if there was no validation
    metrics: Metrics | None  # of the last validation; None if this start made none
    skipped: int  # batches, or parts of batches, without a labelled pixel
    images_per_second: float  # of the training steps alone
    peak_memory: int  # bytes


def train(
    config: TrainConfig,
    *,
    dataset: Dataset[Any] | None = None,
    val_dataset: Dataset[Any] | None = None,
    info: DatasetInfo | None = None,
    resume: bool = False,
    name: str | None = None,
) -> TrainResult:
    """Train a PSPNet; under torchrun, this process's share of it.

    Args:
        config: the options; checked first.
        dataset, val_dataset: pairs (image, label) to train and validate on in the place of ``config.data``; without
            the second nothing is validated. Images are uint8 [3, H, W] of any size, which get the augmentation of
            ``config.data``, or float [3, h, w], normalised and of one size; labels are integers [H, W].
        info: the classes of ``dataset``; by default its attribute ``info``, or those of ``config.data.classes``.
        resume: continue from ``last.pt`` in ``run.folder``, or start there if it is not written yet.
        name: for the folder ``runs/NAME-DATE`` where ``run.folder`` is not set; by default the data set's.

    Raises:
        UserError, DatasetError, OutputError: errors the user can fix, see :mod:`pspnet_fast.engine.errors`.
        DivergedError: the loss or a weight is not finite.
        SystemExit: SIGTERM, SIGUSR1 or SIGINT came; ``last.pt`` holds the last complete step.
    """
    started = time.monotonic()
    config.check()
    with join_world(config.run.device) as world, chosen_backend(config.run.backend), ExitStack() as stack:
        folder = world.agree(run_folder(config, name or config.data.name, resume))
        if world.is_main:
            tqdm.write(f"run folder: {folder}", file=sys.stderr)
        world.on_main(lambda: stack.enter_context(claimed(folder, resume=resume)))
        autocast(world.device, config.run.amp)  # refuses what the device cannot do before anything is read
        if dataset is None:
            data = RunData.of_configuration(config, folder, world)
        else:
            data = RunData.of_caller(config, dataset, val_dataset, info, world)
        trainer = Trainer(config, data, folder, world, resume=resume, started=started)
        stack.callback(trainer.log.close)
        return trainer.run()


def chosen_backend(name: str) -> AbstractContextManager[object]:
    """The operators of ``run.backend``; "auto" leaves what :func:`pspnet_fast.use_backend` or the environment chose."""
    return nullcontext() if name == "auto" else use_backend(name)


class Trainer:
    """One process's training run."""

    def __init__(
        self, config: TrainConfig, data: RunData, folder: Path, world: World, *, resume: bool, started: float
    ) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.last = folder / "last.pt"
        self.metrics: Metrics | None = None
        self.pending: list[tuple[int, float, Tensor]] = []  # steps whose losses are still on the device
        self.stop = StopRequest(verbose=world.is_main)
        if config.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
        torch.use_deterministic_algorithms(config.run.deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = not config.run.deterministic

        self.info, train_set, val_set, pixels = data.info, data.train, data.val, data.pixels
        weights = training_class_weights(config.optim, self.info, None if pixels is None else pixels.splits["training"])
        resumed = resume and self.last.exists()
        self.state = TrainingState(config, self.info, world, weights, load_weights=not resumed)
        before = self.state.restore(self.last) if resumed else 0.0

        step, size = self.state.step, config.optim.batch_size
        self.first_step = step
        self.steps_per_epoch = max(1, len(train_set) // size)
        self.progress = Progress(config, world, self.steps_per_epoch, started=started, before=before)
        total = self.progress.total_steps
        sampler = StepSampler(
            len(train_set), size, seed=config.run.seed, rank=world.rank, world_size=world.size, start=step, stop=total
        )
        workers = config.data.workers
        self.loader = train_loader(train_set, sampler, workers=workers, pin=world.device.type == "cuda")
        self.val_loader = None if val_set is None else eval_loader(val_set, config.eval, workers=workers, world=world)

        # The checkpoint comes before the records: a folder that holds records can always be resumed.
        world.on_main(lambda: dump_config(config, folder / "config.yaml"))
        if not resumed:
            self.state.save_last(self.last, self.steps_per_epoch, 0.0)
        self.log = RunLog(
            folder, config, enabled=world.is_main, step=step, validated=self.state.validated, device=world.device
        )
        if resume:
            self.log.say(f"resuming at step {step}" if resumed else f"no {self.last} yet: starting from step 0")
        for note in (*(() if pixels is None else (pixels.table(),)), *self.state.notes):
            self.log.say(note)
        if val_set is None:
            self.log.say("no validation images: last.pt is the result")

    def run(self) -> TrainResult:
        """Train to the end, validate, and leave ``last.pt`` and ``best.pt``."""
        with self.stop.handled():
            self._loop()
        state = self.state
        if self.world.is_main:
            draw_losses(self.folder / "losses.csv", self.folder / "losses.png")
        if state.skipped:
            self.log.say(f"{state.skipped} batches (or parts of one) had no labelled pixel and were left out")
        if state.step == self.first_step:
            self.log.say(f"the run has ended at step {state.step} before; a larger run.max_steps continues it")
        return TrainResult(
            folder=self.folder,
            step=state.step,
            minutes=self.progress.elapsed() / 60,
            best_miou=state.best_miou,
            metrics=self.metrics,
            skipped=state.skipped,
            images_per_second=self.progress.images_per_second(),
            peak_memory=peak_memory(self.world.device),
        )

    def _loop(self) -> None:
        """Steps; after each, and first of all where a run resumes, the validation or checkpoint that is due."""
        state, progress, options = self.state, self.progress, self.config.run
        first, saved_step, saved = state.step, state.step, progress.elapsed()
        batches: Iterator[tuple[Tensor, Tensor]] = iter(self.loader)
        state.model.train()
        while True:
            elapsed = progress.elapsed()
            stop = int(self.world.maximum(self.stop.signal))
            if stop:
                self._save()
                self.log.say(f"saved step {state.step} in {self.last}; continue with --resume --folder {self.folder}")
                raise SystemExit(128 + stop)
            if progress.validation_due(state.step, elapsed) and state.validated != state.step:
                self._validate()
                saved_step, saved = state.step, progress.elapsed()
            elif state.step != saved_step and (
                state.step % options.save_every_steps == 0 or elapsed - saved >= options.save_every_seconds
            ):
                self._save()
                saved_step, saved = state.step, progress.elapsed()
            if options.patience is not None and state.since_best >= options.patience:
                self.log.say(
                    f"{state.since_best} validations without a better {options.best}: the run ends (run.patience)"
                )
                return
            if progress.share(state.step, elapsed) >= 1:
                return
            # The first step also waits for loader processes to start.
            with progress.measure("step") if state.step > first else nullcontext():
                self._train_step(*next(batches), progress.schedule(state.step, elapsed))
                if state.step % options.log_every == 0:
                    self._flush()
            self._show_progress(elapsed)

    def _train_step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """One optimizer step on this process's share of the batch."""
        state = self.state
        lr = set_rates(state.optimizer, schedule_factor(self.config.optim, state.step, progress))
        sums = state.add_gradients(images, labels)
        state.update()
        self.pending.append((state.step, lr, sums))

    def _flush(self) -> None:
        """Fetch the losses of the last steps (the only wait for the device), check and record them."""
        if not self.pending:
            return
        check_labels(self.world.device)
        sums = self.world.sum(torch.stack([row for _, _, row in self.pending])).cpu()
        rows = []
        for (step, lr, _), (loss, main, aux, hits, valid) in zip(self.pending, sums.tolist(), strict=True):
            losses = {"loss": loss, "main_loss": main, "aux_loss": aux}
            row = {"step": step, "epoch": (step - 1) // self.steps_per_epoch, "lr": lr}
            row |= {key: value / self.world.size for key, value in losses.items()}
            rows.append({**row, "pixel_accuracy": hits / max(valid, 1)})
        self.pending.clear()
        self.log.log_losses(rows)
        self.state.recent_losses.extend(row["loss"] for row in rows)
        for row in rows:
            if not math.isfinite(row["loss"]):
                raise DivergedError(
                    f"the loss of step {row['step']} is {row['loss']} at rate {row['lr']:.3g}: training diverged. "
                    "Lower optim.lr, raise optim.warmup_steps, or compute with run.amp=none "
                    f"(now {self.config.run.amp}). {self.last} is from before."
                )

    def _mean_loss(self) -> float:
        losses = self.state.recent_losses
        return sum(losses) / len(losses) if losses else math.nan

    def _show_progress(self, elapsed: float) -> None:
        step, progress = self.state.step, self.progress
        parts = [f"step {step}"]
        if self.state.recent_losses:  # the first is fetched after run.log_every steps
            parts.append(f"loss {self._mean_loss():.4f}")
        overall = progress.images_per_second(overall=True)
        parts.append(f"{progress.images_per_second():.1f} images/s ({overall:.1f} with validations and checkpoints)")
        parts.append(f"{remaining(progress.seconds_left(step, elapsed))} left")
        self.log.progress(progress.share(step, elapsed), ", ".join(parts))

    def _save(self) -> None:
        self._flush()  # a run that diverged raises here and keeps the checkpoint from before
        with self.progress.measure("save"):
            self.state.save_last(self.last, self.steps_per_epoch, self.progress.elapsed())

    def _validate(self) -> None:
        """Metrics on the whole validation split; writes ``last.pt``, and ``best.pt`` if there was none better."""
        self._save()  # a validation image that cannot be read, or a signal, must not cost the steps before
        state, config = self.state, self.config
        if self.val_loader is None:
            state.validated = state.step
            return
        with self.progress.measure("validation"), self.stop.saved(state.step):
            self.world.copy_buffers(state.evaluated)
            metrics = evaluate_loader(
                state.evaluated, self.val_loader, self.info, config.eval, amp=config.run.amp, world=self.world
            )
            if self.world.is_main:
                panels = validation_panels(state.evaluated, self.val_loader.dataset, self.info, config)
                self.log.show_panels(panels, state.step)
        summary = metrics.summary()
        row = {
            "step": state.step,
            "epoch": state.step / self.steps_per_epoch,
            "minutes": self.progress.elapsed() / 60,
            "train_loss": self._mean_loss(),
            "images_per_second": self.progress.images_per_second(),
            "peak_memory_mb": peak_memory(self.world.device) / 2**20,
        }
        ious = zip(self.info.classes, metrics.iou.tolist(), strict=True)
        row |= {**summary, **{f"iou_{name}": iou for name, iou in ious}}
        self.log.log_metrics(row)

        # In this order: a process killed in between validates this step again when it resumes.
        improved = state.judge(row, config.run.best)
        if improved:
            state.save_best(self.folder / "best.pt", summary)
        self.metrics, state.validated = metrics, state.step
        self._save()
        self.log.say(
            f"step {state.step}: mIoU {100 * summary['miou']:.2f}, mAcc {100 * summary['macc']:.2f}, "
            f"pixels {100 * summary['accuracy']:.2f}{' (best)' if improved else ''}"
        )
