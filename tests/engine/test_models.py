"""Networks, losses and optimizers of a configuration: weights that fit or do not, schedules, averaged weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from run_files import BUILT_IN, MakeConfig, rows, weights
from torch import nn
from torch.optim import lr_scheduler
from torchvision import models

from pspnet_fast import PSPNet
from pspnet_fast.data import DatasetInfo
from pspnet_fast.engine import ConfigError, ModelConfig, OptimConfig, build_model, config_from_dict, train
from pspnet_fast.engine.distributed import World
from pspnet_fast.engine.optim import averaged_updates, averaged_weights, build_optimizer, schedule_factor, set_rates
from pspnet_fast.engine.state import TrainingState


@pytest.mark.parametrize(
    ("state", "options", "said"),
    [
        (lambda: models.resnet34(weights=None).state_dict(), {"backbone": "resnet18"}, "unused"),
        (lambda: models.resnet18(weights=None).state_dict(), {"layers": 18}, "missing"),
        (lambda: {"model": PSPNet(18, classes=3, pretrained=False).state_dict()}, {"layers": 18}, "unused"),
    ],
    ids=["another depth", "another stem", "a whole network"],
)
def test_weights_that_fit_the_backbone_in_part(
    tmp_path: Path, state: Callable[[], object], options: dict[str, Any], said: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state(), path)
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"model\.pretrained = .*in part only: .*model\.pretrained_partial=true"):
        build_model(ModelConfig(pretrained=str(path), **options), 3)
    build_model(ModelConfig(pretrained=str(path), pretrained_partial=True, **options), 3, report=lines.append)
    (line,) = lines
    assert "entries loaded" in line
    assert said in line


def test_weights_that_fit_are_reported(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "tv.pth")
    options = ("model.backbone=resnet18", f"model.pretrained={tmp_path}/tv.pth", "run.max_steps=1")
    train(make_config(*options))
    assert re.search(r"tv\.pth: 1\d\d entries loaded; 2 unused: fc\.weight, fc\.bias", capsys.readouterr().err)
    (tmp_path / "tv.pth").unlink()
    train(make_config(*options), resume=True)  # the checkpoint has the weights
    with pytest.raises(ConfigError, match=r"model\.pretrained = .*tv\.pth: no such file"):
        train(make_config(*options, folder="another"))


def test_published_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through the libraries' own functions: here they make random weights instead of fetching files."""
    create, made = timm.create_model, []

    def created(name: str, *, pretrained: bool, **options: object) -> object:
        made.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.setattr(
        models.ResNet50_Weights, "get_state_dict", lambda *_, **__: models.resnet50(weights=None).state_dict()
    )
    lines: list[str] = []
    for options in ({"layers": 50}, {"backbone": "timm/test_resnet"}, {"backbone": "resnet50"}):
        build_model(ModelConfig(pretrained="imagenet", **options), 3, report=lines.append)
    assert [name for name, pretrained in made if pretrained] == ["resnet50s.gluon_in1k", "test_resnet"]
    assert all(
        re.search(r"model\.pretrained = imagenet: .*(timm|torchvision)'s .*: \d+ entries loaded", x) for x in lines
    )
    with pytest.raises(ConfigError, match=r"none are published for the deep-stem ResNet of 18.*timm/resnet18"):
        build_model(ModelConfig(pretrained="imagenet", layers=18), 3)


def test_published_weights_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    create = timm.create_model

    def offline(*arguments: object, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no connection")
        return create(*arguments, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", lambda *_, **__: offline(pretrained=True))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ConfigError, match=rf"no connection.*{tmp_path}/hub/checkpoints/resnet50-\w+\.pth \(TORCH_HOME\)"
    ):
        build_model(ModelConfig(pretrained="imagenet", backbone="resnet50"), 3)
    with pytest.raises(ConfigError, match=r"timm/test_resnet\.r160_in1k cannot be fetched.*HF_HOME"):
        build_model(ModelConfig(pretrained="imagenet", backbone="timm/test_resnet"), 3)


def test_weights_of_other_classes_start_the_class_layers_anew(tmp_path: Path) -> None:
    options = ModelConfig(backbone="timm/test_resnet", weights=str(tmp_path / "five.pth"))
    five = build_model(options, 5, load_weights=False)
    torch.save(five.state_dict(), tmp_path / "five.pth")
    lines: list[str] = []
    three = build_model(options, 3, report=lines.append)
    assert "it has 5 classes and this network 3: the class layers start anew" in lines[0]
    torch.testing.assert_close(three.cls[0].weight, five.cls[0].weight)
    assert three.cls[4].weight.shape[0] == 3


OHEM = ("optim.loss={name: ohem, share: 0.5}", "optim.loss={name: ohem, threshold: 0.7}")


@pytest.mark.parametrize("change", [*OHEM, "optim.loss=focal", "optim.dice=1"])
def test_losses_of_a_configuration_train(make_config: MakeConfig, change: str) -> None:
    config = make_config(change, "run.max_steps=4", "optim.class_weights=frequency", "optim.aux_weight=0.3")
    result = train(config)
    found = [float(row["loss"]) for row in rows(result.folder / "losses.csv")]
    plain = train(make_config("run.max_steps=1", "optim.class_weights=frequency", folder="plain"))
    assert found[0] != float(rows(plain.folder / "losses.csv")[0]["loss"])
    assert all(map(math.isfinite, found))
    train(make_config(change, "run.max_steps=5", "optim.class_weights=frequency"), resume=True)


def test_frozen_backbone_and_recomputation_train(make_config: MakeConfig) -> None:
    options = ("model.freeze=[backbone]", "model.checkpoint=selective", "run.max_steps=2")
    folder = train(make_config(*BUILT_IN, *options)).folder
    torch.manual_seed(0)
    start = build_model(ModelConfig(layers=18), 11)
    state = weights(folder)
    assert all(torch.equal(state[key], value) for key, value in start.state_dict().items() if key.startswith("layer"))
    assert not torch.equal(state["cls.0.weight"], start.cls[0].weight)
    with pytest.raises(ConfigError, match="model: 'layer7' is no part"):
        build_model(ModelConfig(layers=18, freeze=("layer7",)), 11)


# It rises in pct_start of the steps less one: (0.3 * 10 + 1) / 11 for 30% of 10.
ONE_CYCLE = {"pct_start": 4 / 11, "cycle_momentum": False}


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("poly", lambda sgd, total: lr_scheduler.LambdaLR(sgd, lambda step: (1 - step / total) ** 0.9)),
        ("cosine", lambda sgd, total: lr_scheduler.CosineAnnealingLR(sgd, total)),
        ("onecycle", lambda sgd, total: lr_scheduler.OneCycleLR(sgd, [0.01, 0.1], total + 1, **ONE_CYCLE)),
    ],
)
def test_schedules_are_torchs(name: str, torchs: Callable[[torch.optim.Optimizer, int], Any]) -> None:
    total = 10
    model = PSPNet(backbone="timm/test_resnet", classes=3, pretrained=False)
    optimizer = build_optimizer(model, OptimConfig(momentum=0))
    scheduler = torchs(optimizer, total)
    for step in range(total + 1):
        expected = [group["lr"] for group in optimizer.param_groups]
        set_rates(optimizer, schedule_factor(OptimConfig(schedule=name), step, step / total))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, abs=1e-12)
        if step < total:
            for group, rate in zip(optimizer.param_groups, expected, strict=True):
                group["lr"] = rate  # CosineAnnealingLR goes on from the last rate
            optimizer.step()
            scheduler.step()


def test_warmup_is_linear_and_reaches_the_schedule() -> None:
    options = OptimConfig(warmup_steps=4)
    assert [schedule_factor(options, step, 0.0) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_optimizers_are_torchs(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = PSPNet(layers=18, classes=3, pretrained=False)
    options = config_from_dict({"optim": {"name": name, "betas": [0.8, 0.9]}, "run": {"epochs": 1}}).optim
    optimizer = build_optimizer(model, options)
    assert type(optimizer) is kind
    names = {id(parameter): name.split(".")[0] for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    assert [set(group) for group in groups] == [{f"layer{i}" for i in range(5)}, {"ppm", "cls", "aux"}]
    assert sum(map(len, groups)) == len(names)
    lr = 0.01 if name == "sgd" else 1e-4
    assert [(group["base_lr"], group["fused"]) for group in optimizer.param_groups] == [(lr, True), (10 * lr, True)]
    assert optimizer.defaults.get("betas", (0.8, 0.9)) == (0.8, 0.9)
    assert set_rates(optimizer, 0.5) == pytest.approx(lr / 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr / 2, 5 * lr])


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
