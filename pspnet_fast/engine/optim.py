"""Parameter groups, learning-rate schedule and averaged weights."""

from __future__ import annotations

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


def build_sgd(model: PSPNet, options: OptimConfig) -> torch.optim.SGD:
    """SGD over :func:`parameter_groups`; one fused kernel a group where every parameter's device has it (CPU, CUDA)."""
    devices = {parameter.device.type for parameter in model.parameters()}
    return torch.optim.SGD(
        parameter_groups(model, options.lr, options.head_lr_ratio),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
        fused=devices <= {"cpu", "cuda"},
    )


@dataclass(frozen=True)
class PolySchedule:
    """``(1 - progress) ** power`` (Chen et al., DeepLab, 2017), after a linear warm-up over the first steps."""

    power: float = 0.9
    warmup_steps: int = 0

    def factor(self, step: int, progress: float) -> float:
        """What the base rates are multiplied with at ``step`` (from 0); ``progress`` runs from 0 to 1 over the run."""
        decay: float = max(0.0, 1.0 - progress) ** self.power
        return decay * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def apply(self, optimizer: torch.optim.Optimizer, step: int, progress: float) -> float:
        """Set the rate of every group and return the first group's."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step, progress)
        return float(optimizer.param_groups[0]["lr"])


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
