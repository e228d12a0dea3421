"""Schedule, parameter groups, averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pspnet_fast import PSPNet
from pspnet_fast.engine import OptimConfig
from pspnet_fast.engine.optim import PolySchedule, averaged_updates, averaged_weights, build_sgd, parameter_groups


def test_poly_schedule() -> None:
    schedule = PolySchedule(power=0.9)
    assert [schedule.factor(step, step / 4) for step in range(5)] == pytest.approx(
        [1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0]
    )


def test_warmup_is_linear_and_reaches_the_schedule() -> None:
    schedule = PolySchedule(power=1.0, warmup_steps=4)
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
    optimizer = build_sgd(PSPNet(layers=18, classes=3, pretrained=False), OptimConfig(lr=0.02))
    assert PolySchedule(power=1.0).apply(optimizer, 5, 0.5) == pytest.approx(0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])
    assert all(group["fused"] for group in optimizer.param_groups)


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
