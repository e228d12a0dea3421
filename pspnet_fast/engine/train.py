"""Training: the loop, its records and its checkpoints."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pspnet_fast import use_backend
from pspnet_fast.machine import peak_memory

from .class_weights import training_class_weights
from .clock import Clock, planned_steps
from .config import TrainConfig
from .config_io import dump_config
from .datasets import open_split
from .distributed import World, join_world
from .errors import ConfigError, DivergedError
from .evaluate import eval_loader, evaluate_loader
from .inference import autocast, predict_labels
from .logging import RunLog, draw_losses
from .metrics import Metrics
from .pictures import panel
from .sampling import StepSampler, train_loader
from .state import TrainingState


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` leaves: its folder (``last.pt``, ``best.pt``, tables, TensorBoard) and the closing numbers."""

    folder: Path
    step: int
    minutes: float
    best_miou: float
    metrics: Metrics | None  # of the last validation
    skipped: int  # batches, or parts of batches, without a labelled pixel
    images_per_second: float  # of training alone
    peak_memory: int  # bytes


def train(config: TrainConfig, *, resume: bool = False, name: str | None = None) -> TrainResult:
    """Train a PSPNet; under torchrun, this process's share of it.

    Args:
        config: the options; checked first.
        resume: go on from ``last.pt`` in ``run.folder``, or start there if the run was stopped before the first one.
        name: for the folder ``runs/NAME-DATE`` where ``run.folder`` is not set; by default the data set's.

    Raises:
        UserError, DatasetError: what the user can mend, see :mod:`pspnet_fast.engine.errors`.
        DivergedError: the loss is not finite.
    """
    started = time.monotonic()
    config.check()
    with join_world(config.run.device) as world, chosen_backend(config.run.backend):
        folder = world.agree(_run_folder(config, name or config.data.name, resume))
        trainer = Trainer(config, folder, world, resume=resume, started=started)
        try:
            return trainer.run()
        finally:
            trainer.log.close()


def chosen_backend(name: str) -> AbstractContextManager[object]:
    """The operators of ``run.backend``; "auto" leaves what :func:`pspnet_fast.use_backend` or the environment chose."""
    return nullcontext() if name == "auto" else use_backend(name)


class Trainer:
    """One process's training run."""

    def __init__(self, config: TrainConfig, folder: Path, world: World, *, resume: bool, started: float) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.metrics: Metrics | None = None
        self.pending: list[tuple[int, float, Tensor]] = []  # steps whose losses are still on the device
        self.mean_loss, self.train_seconds, self.train_images = float("nan"), 0.0, 0
        autocast(world.device, config.run.amp)  # refuses what the device cannot do before anything is loaded
        torch.use_deterministic_algorithms(config.run.deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = not config.run.deterministic

        train_set = open_split(config.data, config.data.train_split, training=True)
        val_set = open_split(config.data, config.data.val_split)
        self.info = train_set.info
        weights = training_class_weights(config.optim, train_set, world, config.data.workers)
        self.state = TrainingState(config, self.info, world, weights)
        last = folder / "last.pt"
        resumed = resume and last.exists()
        before = self.state.restore(last) if resumed else 0.0

        step, size = self.state.step, config.optim.batch_size
        total = planned_steps(config, max(1, len(train_set) // size))
        sampler = StepSampler(
            len(train_set), size, seed=config.run.seed, rank=world.rank, world_size=world.size, start=step, stop=total
        )
        self.steps_per_epoch = sampler.steps_per_epoch
        self.clock = Clock(config, world, started, total, before)
        workers = config.data.workers
        self.loader = train_loader(train_set, sampler, workers=workers, pin=world.device.type == "cuda")
        self.val_loader = eval_loader(val_set, config.eval, workers=workers, world=world)

        self.log = RunLog(folder, enabled=world.is_main, step=step, device=world.device)
        if resume:
            self.log.say(f"resuming {folder} at step {step}" if resumed else f"no {last} yet: starting anew")
        for change in self.state.changes:
            self.log.say(f"resuming with another {change}")
        if world.is_main:
            dump_config(config, folder / "config.yaml")

    def run(self) -> TrainResult:
        """Train to the end, validate, and leave ``last.pt`` and ``best.pt``."""
        state, clock, options = self.state, self.clock, self.config.run
        elapsed = saved = clock.elapsed()
        first, validated = state.step, -1
        batches: Iterator[tuple[Tensor, Tensor]] = iter(self.loader)
        state.model.train()
        while clock.share(state.step, elapsed) < 1:
            begun = time.monotonic()
            self._train_step(*next(batches), clock.progress(state.step, elapsed))
            if state.step % options.log_every == 0:
                self._flush()
            if state.step > first + 1:  # the first step also waits for loader processes to start
                self.train_seconds += time.monotonic() - begun
                self.train_images += self.config.optim.batch_size
            elapsed = clock.elapsed()
            if state.step % options.log_every == 0:
                self._show_progress(elapsed)
            if options.validate_every and state.step % (options.validate_every * self.steps_per_epoch) == 0:
                self._validate()
                validated, saved = state.step, clock.elapsed()
            elif state.step % options.save_every_steps == 0 or elapsed - saved >= options.save_every_seconds:
                self._save()
                saved = clock.elapsed()
        if validated != state.step:
            self._validate()
        return self._finish()

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
        sums = self.world.sum(torch.stack([row for _, _, row in self.pending])).cpu()
        rows = []
        for (step, lr, _), (loss, main, aux, hits, valid) in zip(self.pending, sums.tolist(), strict=True):
            losses = {"loss": loss, "main_loss": main, "aux_loss": aux}
            row = {"step": step, "epoch": (step - 1) // self.steps_per_epoch, "lr": lr}
            row |= {key: value / self.world.size for key, value in losses.items()}
            rows.append({**row, "pixel_accuracy": hits / max(valid, 1)})
        self.pending.clear()
        self.log.log_losses(rows)
        self.mean_loss = sum(row["loss"] for row in rows) / len(rows)
        for row in rows:
            if not abs(row["loss"]) < float("inf"):
                raise DivergedError(
                    f"the loss of step {row['step']} is {row['loss']} at rate {row['lr']:.3g}: training diverged. "
                    "Lower optim.lr, raise optim.warmup_steps, or compute with run.amp=none "
                    f"(now {self.config.run.amp}). A {self.folder / 'last.pt'} is from before."
                )

    def _show_progress(self, elapsed: float) -> None:
        step = self.state.step
        rate = self.train_images / max(self.train_seconds, 1e-9)
        left = self.clock.left(elapsed, step, self.config.optim.batch_size / max(rate, 1e-9))
        self.log.progress(self.clock.share(step, elapsed), step, self.mean_loss, rate, left)

    def _save(self) -> None:
        self._flush()  # a run that diverged raises here and keeps the checkpoint from before
        self.state.save_last(self.folder / "last.pt", self.steps_per_epoch, self.clock.elapsed())

    def _validate(self) -> None:
        """Metrics on the whole validation split; writes ``last.pt``, and ``best.pt`` if there was none better."""
        self._flush()
        state, config = self.state, self.config
        self.world.copy_buffers(state.evaluated)
        metrics = self.metrics = evaluate_loader(
            state.evaluated, self.val_loader, self.info, config.eval, amp=config.run.amp, world=self.world
        )
        summary = metrics.summary()
        row = {
            "step": state.step,
            "epoch": state.step / self.steps_per_epoch,
            "minutes": self.clock.elapsed() / 60,
            "train_loss": self.mean_loss,
            "images_per_second": self.train_images / max(self.train_seconds, 1e-9),
            "peak_memory_mb": peak_memory(self.world.device) / 2**20,
        }
        ious = zip(self.info.classes, metrics.iou.tolist(), strict=True)
        self.log.log_metrics({**row, **summary, **{f"iou_{name}": iou for name, iou in ious}})
        self._show_pictures()

        improved = summary["miou"] > state.best
        state.best = max(state.best, summary["miou"])
        if improved:  # before last.pt, which says how good the best is
            state.save_best(self.folder / "best.pt", summary)
        self._save()
        self.log.say(
            f"step {state.step}: mIoU {100 * summary['miou']:.2f}, mAcc {100 * summary['macc']:.2f}, "
            f"pixels {100 * summary['accuracy']:.2f}{' (best)' if improved else ''}"
        )

    @torch.inference_mode()
    def _show_pictures(self) -> None:
        """The first validation images beside their labels and predictions, in TensorBoard."""
        if not self.world.is_main:
            return
        model, data = self.state.evaluated, self.config.data
        was_training = model.training
        model.eval()
        share = self.val_loader.dataset
        for i in range(min(self.config.run.pictures, len(share))):  # type: ignore[arg-type]
            image, label = share[i]
            batch = image[None].to(self.world.device, memory_format=self.state.layout)
            with autocast(self.world.device, self.config.run.amp):
                prediction = predict_labels(model, batch, self.config.eval)[0]
            self.log.picture(
                f"val/{i}", panel(image, label, prediction, self.info, data.mean, data.std), self.state.step
            )
        model.train(was_training)

    def _finish(self) -> TrainResult:
        state = self.state
        if self.world.is_main:
            draw_losses(self.folder / "losses.csv", self.folder / "losses.png")
        if state.skipped:
            self.log.say(f"{state.skipped} batches (or parts of one) had no labelled pixel and were left out")
        return TrainResult(
            folder=self.folder,
            step=state.step,
            minutes=self.clock.elapsed() / 60,
            best_miou=state.best,
            metrics=self.metrics,
            skipped=state.skipped,
            images_per_second=self.train_images / max(self.train_seconds, 1e-9),
            peak_memory=peak_memory(self.world.device),
        )


def _run_folder(config: TrainConfig, name: str, resume: bool) -> Path:
    if config.run.folder is None:
        if resume:
            raise ConfigError("which run should be resumed? name it with --folder DIR")
        return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.run.folder)
    if not resume and (folder / "last.pt").exists():
        raise ConfigError(f"{folder} already holds a run: continue it with --resume, or choose another --folder")
    return folder
