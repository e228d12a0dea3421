"""Parameter groups, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pspnet_fast.nn import PSPNet

from .config import OptimConfig


def parameter_groups(model: PSPNet, lr: float, head_lr_ratio: float) -> list[dict[str, object]]:
    """Backbone at ``lr``, heads at ``lr * head_lr_ratio``; the schedule scales each group's ``base_lr``."""
    rates = ((model.backbone_modules(), lr), (model.head_modules(), lr * head_lr_ratio))
    return [
        {
            "params": [p for module in modules for p in module.parameters() if p.requires_grad],
            "lr": rate,
            "base_lr": rate,
        }
        for modules, rate in rates
    ]


def build_optimizer(model: PSPNet, options: OptimConfig) -> torch.optim.Optimizer:
    """torch's SGD, Adam or AdamW over :func:`parameter_groups`; fused where every parameter's device has it."""
    devices = {parameter.device.type for parameter in model.parameters()}
    groups = parameter_groups(model, options.lr, options.head_lr_ratio)
    shared: dict[str, Any] = {"weight_decay": options.weight_decay, "fused": devices <= {"cpu", "cuda"}}
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **shared)
    kind = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return kind(groups, betas=options.betas, **shared)


@dataclass(frozen=True)
class Schedule:
    """The rate over a run, after a linear warm-up over the first steps.

    A function of the progress alone, 0 to 1, which follows steps or time: torch's schedulers count steps, and their
    total must be known. With progress = step / total, the factors are those of

    - poly: ``LambdaLR`` of ``(1 - progress) ** power`` (Chen et al., DeepLab, 2017),
    - cosine: ``CosineAnnealingLR`` to 0,
    - onecycle: ``OneCycleLR`` with its defaults (up from 1/25 in 30% of the run, then down to 1/250000), except that
      momenta stay as they are.
    """

    name: str = "poly"
    power: float = 0.9
    warmup_steps: int = 0

    def factor(self, step: int, progress: float) -> float:
        """What the base rates are multiplied with at ``step`` (from 0); ``progress`` runs from 0 to 1 over the run."""
        progress = min(1.0, progress)
        if self.name == "poly":
            factor = (1.0 - progress) ** self.power
        elif self.name == "cosine":
            factor = _cosine(1.0, 0.0, progress)
        elif progress < _ONECYCLE_RISE:
            factor = _cosine(_ONECYCLE_START, 1.0, progress / _ONECYCLE_RISE)
        else:
            factor = _cosine(1.0, _ONECYCLE_END, (progress - _ONECYCLE_RISE) / (1 - _ONECYCLE_RISE))
        return factor * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def apply(self, optimizer: torch.optim.Optimizer, step: int, progress: float) -> float:
        """Set the rate of every group and return the first group's."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step, progress)
        return float(optimizer.param_groups[0]["lr"])


_ONECYCLE_RISE, _ONECYCLE_START, _ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4


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
