"""Training: the loop, its records and its checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pspnet_fast import check_labels, use_backend
from pspnet_fast.data import check_headers
from pspnet_fast.machine import peak_memory

from .class_weights import PixelCounts, training_class_weights
from .config import TrainConfig
from .config_io import dump_config
from .datasets import open_split
from .distributed import World, join_world
from .errors import DivergedError
from .evaluate import eval_loader, evaluate_loader
from .inference import autocast
from .metrics import Metrics
from .pictures import validation_panels
from .progress import Progress
from .run_folder import claimed, run_folder
from .run_log import RunLog, draw_losses, remaining
from .sampling import StepSampler, train_loader
from .signals import StopRequest
from .state import TrainingState


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` leaves: its folder (``last.pt``, ``best.pt``, tables, TensorBoard) and the closing numbers."""

    folder: Path
    step: int
    minutes: float
    best_miou: float  # of all validations; nan if there was none
    metrics: Metrics | None  # of the last validation; None if this start made none
    skipped: int  # batches, or parts of batches, without a labelled pixel
    images_per_second: float  # of the training steps alone
    peak_memory: int  # bytes


def train(config: TrainConfig, *, resume: bool = False, name: str | None = None) -> TrainResult:
    """Train a PSPNet; under torchrun, this process's share of it.

    Args:
        config: the options; checked first.
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
        trainer = Trainer(config, folder, world, resume=resume, started=started)
        stack.callback(trainer.log.close)
        return trainer.run()


def chosen_backend(name: str) -> AbstractContextManager[object]:
    """The operators of ``run.backend``; "auto" leaves what :func:`pspnet_fast.use_backend` or the environment chose."""
    return nullcontext() if name == "auto" else use_backend(name)


class Trainer:
    """One process's training run."""

    def __init__(self, config: TrainConfig, folder: Path, world: World, *, resume: bool, started: float) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.last = folder / "last.pt"
        self.metrics: Metrics | None = None
        self.pending: list[tuple[int, float, Tensor]] = []  # steps whose losses are still on the device
        self.stop = StopRequest(verbose=world.is_main)
        autocast(world.device, config.run.amp)  # refuses what the device cannot do before anything is loaded
        torch.use_deterministic_algorithms(config.run.deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = not config.run.deterministic

        train_set = open_split(config.data, config.data.train_split, training=True)
        val_set = open_split(config.data, config.data.val_split)
        world.on_main(lambda: check_headers(train_set))
        world.on_main(lambda: check_headers(val_set))
        self.info = train_set.info
        pixels = PixelCounts.of(train_set, val_set, world, config.data.workers)
        pixels.check(config.data, (len(train_set), len(val_set)))
        weights = training_class_weights(config.optim, self.info, pixels.train)
        resumed = resume and self.last.exists()
        self.state = TrainingState(config, self.info, world, weights, load_weights=not resumed)
        before = self.state.restore(self.last) if resumed else 0.0

        step, size = self.state.step, config.optim.batch_size
        self.steps_per_epoch = max(1, len(train_set) // size)
        self.progress = Progress(config, world, self.steps_per_epoch, started=started, before=before)
        total = self.progress.total_steps
        sampler = StepSampler(
            len(train_set), size, seed=config.run.seed, rank=world.rank, world_size=world.size, start=step, stop=total
        )
        workers = config.data.workers
        self.loader = train_loader(train_set, sampler, workers=workers, pin=world.device.type == "cuda")
        self.val_loader = eval_loader(val_set, config.eval, workers=workers, world=world)

        # The checkpoint comes before the records: a folder that holds records can always be resumed.
        world.on_main(lambda: dump_config(config, folder / "config.yaml"))
        if not resumed:
            self.state.save_last(self.last, self.steps_per_epoch, 0.0)
        self.log = RunLog(folder, enabled=world.is_main, step=step, validated=self.state.validated, device=world.device)
        if resume:
            self.log.say(f"resuming at step {step}" if resumed else f"no {self.last} yet: starting from step 0")
        self.log.say(pixels.table())
        for note in self.state.notes:
            self.log.say(note)

    def run(self) -> TrainResult:
        """Train to the end, validate, and leave ``last.pt`` and ``best.pt``."""
        with self.stop.handled():
            self._loop()
        state = self.state
        if self.world.is_main:
            draw_losses(self.folder / "losses.csv", self.folder / "losses.png")
        if state.skipped:
            self.log.say(f"{state.skipped} batches (or parts of one) had no labelled pixel and were left out")
        if self.metrics is None:
            self.log.say(f"the run has ended at step {state.step} before; a larger run.max_steps continues it")
        return TrainResult(
            folder=self.folder,
            step=state.step,
            minutes=self.progress.elapsed() / 60,
            best_miou=state.best,
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
            stop = self.world.maximum(self.stop.signal)
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
            if progress.share(state.step, elapsed) >= 1:
                return
            # The first step also waits for loader processes to start.
            with progress.measure("step") if state.step > first else nullcontext():
                self._train_step(*next(batches), progress.schedule(state.step, elapsed))
                if state.step % options.log_every == 0:
                    self._flush()
            self._show_progress(elapsed)

    def _train_step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """One optimizer step on this process's share of the batch, in ``optim.accumulate`` parts."""
        state, options = self.state, self.config.optim
        lr = state.schedule.apply(state.optimizer, state.step, progress)
        parts = list(zip(images.chunk(options.accumulate), labels.chunk(options.accumulate), strict=True))
        labelled = [int((y != self.info.ignore_index).sum()) for _, y in parts]  # on the CPU, before the copy
        sums = torch.zeros(5, device=self.world.device, dtype=torch.float64)
        for i, (x, y) in enumerate(parts):
            # The share of the labelled pixels: then the parts' mean losses add up to the mean over the whole batch.
            weight = labelled[i] / max(1, sum(labelled))
            if labelled[i] == 0:
                # Its mean loss would be 0/0. One made-up pixel keeps it finite, weight 0 keeps it out of every
                # gradient, and forward and backward still run, as other ranks wait for them.
                y = y.clone()
                y[0, 0, 0] = 0
                state.skipped += 1
            with self._no_sync(more=i + 1 < len(parts)):
                sums += self._part(x, y, weight)
        state.update()
        self.pending.append((state.step, lr, sums))

    def _part(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        """Add a part's gradients; float64 [5]: its weighted total, main and aux loss, right and labelled pixels."""
        device, config = self.world.device, self.config
        x = images.to(device, non_blocking=True).contiguous(memory_format=self.state.layout)
        y = labels.to(device, non_blocking=True)
        every = 8 // config.model.zoom_factor  # labels at the resolution of the output
        y = y[:, ::every, ::every].contiguous()
        with autocast(device, config.run.amp):
            prediction, main, aux = self.state.forward(x, y)
            loss = main + config.optim.aux_weight * aux
        self.state.scaler.scale(loss * weight).backward()
        with torch.no_grad():
            valid = y != self.info.ignore_index
            hits = ((prediction == y) & valid).sum()
            terms = (weight * loss, weight * main, weight * aux, hits, valid.sum())
            return torch.stack([term.double() for term in terms])

    def _no_sync(self, *, more: bool) -> AbstractContextManager[object]:
        """Gradients travel between the ranks with the last part of a batch only."""
        parallel = self.state.parallel
        return nullcontext() if parallel is None or not more else parallel.no_sync()

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
        rates = f"{progress.images_per_second():.1f} images/s"
        rates += f" ({progress.images_per_second(overall=True):.1f} with validations and checkpoints)"
        left = remaining(progress.seconds_left(step, elapsed))
        self.log.progress(
            progress.share(step, elapsed), f"step {step}, loss {self._mean_loss():.4f}, {rates}, {left} left"
        )

    def _save(self) -> None:
        self._flush()  # a run that diverged raises here and keeps the checkpoint from before
        with self.progress.measure("save"):
            self.state.save_last(self.last, self.steps_per_epoch, self.progress.elapsed())

    def _validate(self) -> None:
        """Metrics on the whole validation split; writes ``last.pt``, and ``best.pt`` if there was none better."""
        self._save()  # a validation image that cannot be read, or a signal, must not cost the steps before
        state, config = self.state, self.config
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
        self.log.log_metrics({**row, **summary, **{f"iou_{name}": iou for name, iou in ious}})

        # In this order: a process killed in between validates this step again when it resumes.
        improved = not summary["miou"] <= state.best  # nan before the first
        if improved:
            state.best = summary["miou"]
            state.save_best(self.folder / "best.pt", summary)
        self.metrics, state.validated = metrics, state.step
        self._save()
        self.log.say(
            f"step {state.step}: mIoU {100 * summary['miou']:.2f}, mAcc {100 * summary['macc']:.2f}, "
            f"pixels {100 * summary['accuracy']:.2f}{' (best)' if improved else ''}"
        )
