"""What a run carries from step to step, and into its checkpoints; and a step of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pspnet_fast.data import DatasetInfo
from pspnet_fast.nn.weights import load_checkpoint_weights

from . import checkpoint
from .config import TrainConfig
from .config_io import changed_keys
from .distributed import World
from .errors import CheckpointError, ConfigError
from .inference import autocast
from .models import DATASET, build_loss, build_model, check_classes
from .optim import averaged_updates, averaged_weights, build_optimizer
from .run_data import mix


class TrainingState:
    """Network, optimizer, averaged weights and counters of one process.

    ``step`` counts finished optimizer steps; epoch and samples follow from it.

    Attributes:
        model: the network itself, whose ``state_dict`` has no prefixes.
        forward: what training calls: the network, distributed or compiled as configured.
        parallel: the distributed wrapper, ``None`` in a single process.
        best: what ``run.best`` names, of the best validation; nan before the first.
        best_miou: its mIoU.
        since_best: validations after it.
        validated: the step of the last validation, -1 before the first.
        recent_losses: of the last ``run.log_every`` steps.
        notes: lines for the user on what was loaded.

    Args:
        load_weights: read the files ``model.pretrained`` and ``model.weights``; a run that resumes needs neither.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: DatasetInfo,
        world: World,
        class_weights: Tensor | None,
        *,
        load_weights: bool = True,
    ) -> None:
        check_batch(config, world)
        _check_best(config.run.best, info)
        self.config, self.info, self.world = config, info, world
        self.step, self.skipped, self.best, self.validated = 0, 0, math.nan, -1
        self.best_miou, self.since_best = math.nan, 0
        self.recent_losses: deque[float] = deque(maxlen=config.run.log_every)
        self.notes: list[str] = []
        options, device = config.optim, world.device

        torch.manual_seed(config.run.seed)
        model = build_model(
            config.model,
            info.num_classes,
            ignore_index=info.ignore_index,
            criterion=build_loss(options, info.ignore_index, class_weights),
            load_weights=load_weights,
            report=self.notes.append,
        )
        if world.size > 1 and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(device=device).to(memory_format=self.layout)

        self.optimizer = build_optimizer(self.model, options)
        self.average = averaged_weights(self.model, options.ema) if options.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")

        self.parallel: DistributedDataParallel | None = None
        if world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids, gradient_as_bucket_view=True)
        forward = self.model if self.parallel is None else self.parallel
        self.forward: Any = torch.compile(forward) if config.run.compile else forward
        torch.manual_seed(mix(config.run.seed, 1 + world.rank))  # dropout differs between the ranks

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.config.run.channels_last else torch.contiguous_format

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept as best: with averaged weights, where those are on."""
        return self.model if self.average is None else self.average.module

    def add_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward of this process's share of a batch, in ``optim.accumulate`` parts.

        Returns:
            float64 [5] on the device: the weighted total, main and auxiliary loss, right and labelled pixels.
        """
        accumulate = self.config.optim.accumulate
        parts = list(zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True))
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
                self.skipped += 1
            # The ranks exchange gradients with the last part of a batch only.
            more = i + 1 < len(parts)
            with self.parallel.no_sync() if self.parallel is not None and more else nullcontext():
                sums += self._add_part(x, y, weight)
        return sums

    def _add_part(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        """Add a part's gradients; what :meth:`add_gradients` returns, of this part."""
        device, config = self.world.device, self.config
        x = images.to(device, non_blocking=True).contiguous(memory_format=self.layout)
        y = labels.to(device, non_blocking=True)
        every = 8 // config.model.zoom_factor  # labels at the resolution of the output
        y = y[:, ::every, ::every].contiguous()
        with autocast(device, config.run.amp):
            prediction, main, aux = self.forward(x, y)
            loss = main + config.optim.aux_weight * aux
        self.scaler.scale(loss * weight).backward()
        with torch.no_grad():
            valid = y != self.info.ignore_index
            hits = ((prediction == y) & valid).sum()
            terms = (weight * loss, weight * main, weight * aux, hits, valid.sum())
            return torch.stack([term.double() for term in terms])

    def update(self) -> None:
        """The optimizer step on the gradients at hand; they are cleared and the step is counted."""
        if self.config.optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1

    def save_last(self, path: Path, steps_per_epoch: int, elapsed: float) -> None:
        """Write all that an uninterrupted run would carry into the next step. Every rank must call it."""
        streams = self.world.gather(checkpoint.rng_state(self.world.device))
        state: dict[str, Any] = {
            **self._description(),
            "epoch": self.step // steps_per_epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"step": self.step, "elapsed": elapsed},
            "scaler": self.scaler.state_dict(),
            "rng": streams,
            "best": self.best,
            "best_miou": self.best_miou,
            "since_best": self.since_best,
            "validated": self.validated,
            "recent_losses": list(self.recent_losses),
            "skipped": self.skipped,
        }
        if self.average is not None:
            updates = averaged_updates(self.average)
            state["ema"] = {"model": self.average.module.state_dict(), "updates": updates}
        self.world.on_main(lambda: checkpoint.save(state, path, keep=self.config.run.keep_last))

    def judge(self, row: Mapping[str, float], name: str) -> bool:
        """Whether a validation's row is the best up to now, which is noted."""
        value = row[name]
        first = math.isnan(self.best)
        better = first or (value < self.best if name.endswith("loss") else value > self.best)
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best, self.best_miou = value, row["miou"]
        return better

    def save_best(self, path: Path, metrics: dict[str, float]) -> None:
        """Write the validated weights alone. Every rank must call it."""
        state = {**self._description(), "model": self.evaluated.state_dict(), "metrics": metrics}
        self.world.on_main(lambda: checkpoint.save(state, path))

    def restore(self, path: Path) -> float:
        """Take over the checkpoint of :meth:`save_last` and return the seconds that its run had taken.

        Raises:
            CheckpointError: it has no optimizer state, other classes, or another network.
        """
        state = checkpoint.load(path)
        if "model" in state and "optimizer" not in state:
            raise CheckpointError(f"{path}: holds weights only; to start from them use model.weights={path}")
        with checkpoint.interpreting(path):
            check_classes(path, DATASET.validate_python(state["dataset"]), self.info)
            self._restore_model(self.model, state["model"], path)
            self._restore_optimizer(state["optimizer"], state["config"]["optim"].get("name", "sgd"), path)
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            if self.average is not None and "ema" in state:
                self._restore_model(self.average.module, state["ema"]["model"], path)
                self.average.n_averaged.fill_(state["ema"]["updates"] + 1)
            self.step, self.skipped = state["step"], state["skipped"]
            self.best = state["best"] if state["best"] >= 0 else math.nan  # -1: none, in earlier versions
            self.best_miou, self.since_best = state.get("best_miou", self.best), state.get("since_best", 0)
            if state["config"]["run"].get("best", "miou") != self.config.run.best:
                self.best, self.since_best = math.nan, 0  # another metric: its best is not known
            self.validated = state.get("validated", self.step)  # earlier versions saved after the validation
            self.recent_losses.extend(state.get("recent_losses", ()))
            if self.world.rank < len(state["rng"]):
                checkpoint.restore_rng(state["rng"][self.world.rank], self.world.device)
            changes = changed_keys(state["config"], self.config.to_dict())
            moved = "run.folder"  # a folder may be moved
            self.notes += [f"resuming with another {change}" for change in changes if not change.startswith(moved)]
            return float(state["scheduler"]["elapsed"])

    @staticmethod
    def _restore_model(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
        try:
            load_checkpoint_weights(model, weights)
        except ValueError as error:
            remedy = f"the network of this run is that of {path.with_name('config.yaml')}"
            raise CheckpointError(f"{path}: is of another network; {remedy}. {error}") from error

    def _restore_optimizer(self, state: dict[str, Any], name: str, path: Path) -> None:
        """Momenta from ``state``, but rates and the like from this configuration, which may have changed on purpose."""
        if name != self.config.optim.name:
            raise CheckpointError(
                f"{path}: holds the state of optim.name={name}, which {self.config.optim.name} cannot continue; resume "
                f"with optim.name={name}, or start a new run from its weights with model.weights={path}"
            )
        # "lr" is what the schedule makes of "base_lr" at the next step.
        kept = ("params", "lr")
        current = [{key: value for key, value in g.items() if key not in kept} for g in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(f"{path}: its optimizer has other parameters than this network ({error})") from error
        for group, options in zip(self.optimizer.param_groups, current, strict=True):
            group.update(options)

    def _description(self) -> dict[str, Any]:
        return {
            "format": checkpoint.FORMAT,
            "step": self.step,
            "config": self.config.to_dict(),
            "dataset": DATASET.dump_python(self.info, mode="json"),
        }


def check_batch(config: TrainConfig, world: World) -> None:
    """Raise :class:`ConfigError` unless every process and part gets the same number of images, and enough of them."""
    options = config.optim
    parts = world.size * options.accumulate
    if options.batch_size % parts:
        raise ConfigError(
            f"optim.batch_size = {options.batch_size} must be a multiple of {parts} "
            f"({world.size} processes x optim.accumulate = {options.accumulate})"
        )
    synchronised = world.size > 1 and world.device.type == "cuda"
    if options.batch_size == parts and not synchronised and config.model.norm == "batch" and config.model.use_ppm:
        raise ConfigError(
            "one image at a time cannot train batch normalisation on the pyramid's 1x1 level: "
            "raise optim.batch_size, lower optim.accumulate, or set model.norm=group"
        )


def _check_best(name: str, info: DatasetInfo) -> None:
    """Raise ConfigError if a validation will have no such metric."""
    names = ("miou", "macc", "accuracy", "train_loss", *(f"iou_{label}" for label in info.classes))
    if name not in names:
        raise ConfigError(f"run.best = {name!r} is no metric of a validation; choose from {', '.join(names)}")
