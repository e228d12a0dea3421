"""Schedule, parameter groups, averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from run_files import MakeConfig
from torch import nn
from torch.optim import lr_scheduler

from pspnet_fast import PSPNet
from pspnet_fast.data import DatasetInfo
from pspnet_fast.engine import OptimConfig, config_from_dict
from pspnet_fast.engine.distributed import World
from pspnet_fast.engine.optim import Schedule, averaged_updates, averaged_weights, build_optimizer, parameter_groups
from pspnet_fast.engine.state import TrainingState


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("poly", lambda sgd, total: lr_scheduler.LambdaLR(sgd, lambda step: (1 - step / total) ** 0.9)),
        ("cosine", lambda sgd, total: lr_scheduler.CosineAnnealingLR(sgd, total)),
        # It rises in pct_start of the steps less one: (0.3 * 10 + 1) / 11 for 30% of 10.
        (
            "onecycle",
            lambda sgd, total: lr_scheduler.OneCycleLR(
                sgd, [0.01, 0.1], total + 1, pct_start=4 / 11, cycle_momentum=False
            ),
        ),
    ],
)
def test_schedules_are_torchs(name: str, torchs: Callable[[torch.optim.Optimizer, int], Any]) -> None:
    total = 10
    model = PSPNet(backbone="timm/test_resnet", classes=3, pretrained=False)
    optimizer = build_optimizer(model, OptimConfig(momentum=0))
    scheduler = torchs(optimizer, total)
    for step in range(total + 1):
        expected = [group["lr"] for group in optimizer.param_groups]
        Schedule(name).apply(optimizer, step, step / total)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, abs=1e-12)
        if step < total:
            for group, rate in zip(optimizer.param_groups, expected, strict=True):
                group["lr"] = rate  # CosineAnnealingLR goes on from the last rate
            optimizer.step()
            scheduler.step()


def test_warmup_is_linear_and_reaches_the_schedule() -> None:
    schedule = Schedule(power=1.0, warmup_steps=4)
    assert [schedule.factor(step, 0.0) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_parameter_groups() -> None:
    model = PSPNet(layers=18, classes=3, pretrained=False)
    backbone, heads = parameter_groups(model, 0.01, 10.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in backbone["params"]} == {f"layer{i}" for i in range(5)}
    assert {names[id(p)].split(".")[0] for p in heads["params"]} == {"ppm", "cls", "aux"}
    assert len(backbone["params"]) + len(heads["params"]) == len(names)
    assert (backbone["lr"], heads["lr"]) == pytest.approx((0.01, 0.1))


def test_schedule_keeps_the_ratio_of_the_groups() -> None:
    optimizer = build_optimizer(PSPNet(layers=18, classes=3, pretrained=False), OptimConfig(lr=0.02))
    assert Schedule(power=1.0).apply(optimizer, 5, 0.5) == pytest.approx(0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_optimizers_are_torchs(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = PSPNet(backbone="timm/test_resnet", classes=3, pretrained=False)
    options = config_from_dict({"optim": {"name": name, "betas": [0.8, 0.9]}, "run": {"epochs": 1}}).optim
    optimizer = build_optimizer(model, options)
    assert type(optimizer) is kind
    lr = 0.01 if name == "sgd" else 1e-4
    assert [(group["base_lr"], group["fused"]) for group in optimizer.param_groups] == [(lr, True), (10 * lr, True)]
    assert optimizer.defaults.get("betas", (0.8, 0.9)) == (0.8, 0.9)


@pytest.mark.parametrize("clip", ["null", "0.1"])
def test_gradients_are_clipped_by_their_norm(make_config: MakeConfig, clip: str) -> None:
    config = make_config(f"optim.clip_norm={clip}", "optim.momentum=0", "optim.weight_decay=0")
    state = TrainingState(
        config, DatasetInfo("two", ("a", "b"), ((0, 0, 0), (1, 1, 1))), World(torch.device("cpu")), None
    )
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in state.optimizer.param_groups:
        group["lr"] = 1.0
    state.update()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, state.model.parameters(), strict=True)]).detach()
    assert float(moved.norm()) == pytest.approx(0.1 if clip == "0.1" else len(moved) ** 0.5, rel=1e-4)


def test_averaged_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    average = averaged_weights(model, decay=0.5)
    expected = model[0].weight.detach().clone()
    for n in range(20):
        with torch.no_grad():
            model[0].weight.add_(1.0)
            model[1].num_batches_tracked.add_(1)
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.module[0].weight, expected)
    assert average.module[1].num_batches_tracked == 20
    assert averaged_updates(average) == 20
    assert not average.module[0].weight.requires_grad
