"""Optimizer, learning-rate schedule, class weights of the loss, and averaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pspnet_fast.data import DatasetInfo
from pspnet_fast.nn import PSPNet

from .config import OptimConfig
from .errors import ConfigError


def build_optimizer(model: PSPNet, options: OptimConfig) -> torch.optim.Optimizer:
    """torch's SGD, Adam or AdamW; fused where every parameter's device has it.

    A group for the backbone at ``optim.lr``, and one for the heads at ``optim.head_lr_ratio`` times that; the schedule
    scales each group's ``base_lr``.
    """
    devices = {parameter.device.type for parameter in model.parameters()}
    rates = ((model.backbone_modules(), options.lr), (model.head_modules(), options.lr * options.head_lr_ratio))
    groups = [
        {"params": [p for m in modules for p in m.parameters() if p.requires_grad], "lr": rate, "base_lr": rate}
        for modules, rate in rates
    ]
    shared: dict[str, Any] = {"weight_decay": options.weight_decay, "fused": devices <= {"cpu", "cuda"}}
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **shared)
    kind = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return kind(groups, betas=options.betas, **shared)


def training_class_weights(options: OptimConfig, info: DatasetInfo, counts: Tensor | None) -> Tensor | None:
    """The loss's weight of each class, float32 [C], or ``None`` for equal weights; ``counts`` of the training pixels.

    Without counts, "frequency" is not possible, and a list is not compared with the classes that occur.

    Raises:
        ConfigError: a list of the wrong length, or one that leaves no training pixel a weight.
    """
    if options.class_weights == "none":
        return None
    if options.class_weights == "frequency":
        assert counts is not None
        return median_frequency_weights(counts[: info.num_classes], options.class_weight_power)
    if len(options.class_weights) != info.num_classes:
        raise ConfigError(
            f"optim.class_weights has {len(options.class_weights)} entries, {info.name} has {info.num_classes} classes"
        )
    weights = torch.tensor(options.class_weights, dtype=torch.float32)
    if counts is not None and not weights[counts[: info.num_classes] > 0].any():
        raise ConfigError(f"optim.class_weights = {list(options.class_weights)} is 0 for every class with a pixel")
    return weights


def median_frequency_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """``(median frequency / frequency) ** power``, scaled to mean 1 (median-frequency balancing: Eigen & Fergus, 2015).

    ``counts`` int64 [C] are labelled pixels, not all 0; a class that has none gets the largest weight of the others.
    """
    present = counts > 0
    counts = counts.double()
    weights = (counts[present].median() / counts.clamp(min=1)) ** power
    weights = torch.where(present, weights, weights[present].max())
    return (weights / weights.mean()).float()


def schedule_factor(options: OptimConfig, step: int, progress: float) -> float:
    """What the base rates are multiplied with at ``step`` (from 0); ``progress`` runs from 0 to 1 over the run.

    After a linear warm-up over the first steps it is a function of the progress alone, which follows steps or time:
    torch's schedulers count steps, and need their total. With progress = step / total, the factors are those of

    - poly: ``LambdaLR`` of ``(1 - progress) ** power`` (Chen et al., DeepLab, 2017),
    - cosine: ``CosineAnnealingLR`` to 0,
    - onecycle: ``OneCycleLR`` with its defaults (up from 1/25 in 30% of the run, then down to 1/250000), except that
      momenta stay as they are.
    """

    progress, rise = min(1.0, progress), 0.3
    if options.schedule == "poly":
        factor = (1.0 - progress) ** options.power
    elif options.schedule == "cosine":
        factor = _cosine(1.0, 0.0, progress)
    elif progress < rise:
        factor = _cosine(1 / 25, 1.0, progress / rise)
    else:
        factor = _cosine(1.0, 1 / 25e4, (progress - rise) / (1 - rise))
    return factor * min(1.0, (step + 1) / (options.warmup_steps + 1))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the rate of every group to ``factor`` times its base, and return the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def averaged_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's parameters and floating-point buffers, in ``.module``.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``: a short run does not average its random start.
    """

    def average(averages: Any, values: Any, _: Any) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        updates = averaged_updates(averaged)  # not the argument, which lies on the device: reading it would wait
        torch._foreach_lerp_(averages, values, 1.0 - min(decay, (1 + updates) / (10 + updates)))

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True).eval().requires_grad_(False)
    averaged.n_averaged += 1  # the copy of the start counts, so that the first update is an average with it
    return averaged


def averaged_updates(averaged: AveragedModel) -> int:
    """The number of updates so far."""
    return int(averaged.n_averaged) - 1
