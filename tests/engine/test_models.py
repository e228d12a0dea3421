"""Networks from configurations: files of weights that fit, and that do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from pspnet_fast.engine import (
    ConfigError,
    ModelConfig,
    build_model,
    train,
)
from pspnet_fast.nn import PSPNet

if TYPE_CHECKING:  # at run time another folder's conftest may bear the name
    from conftest import MakeConfig


@pytest.mark.parametrize("source", ["another depth", "another stem", "a whole network"])
def test_weights_that_fit_the_backbone_in_part(tmp_path: Path, source: str) -> None:
    models = pytest.importorskip("torchvision.models")
    path = tmp_path / "weights.pth"
    if source == "another depth":
        torch.save(models.resnet34(weights=None).state_dict(), path)
        options = {"backbone": "resnet18"}
    elif source == "another stem":
        torch.save(models.resnet18(weights=None).state_dict(), path)
        options = {"layers": 18}
    else:
        torch.save({"model": PSPNet(layers=18, classes=3, pretrained=False).state_dict()}, path)
        options = {"layers": 18}
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"model\.pretrained = .*in part only: .*model\.pretrained_partial=true"):
        build_model(ModelConfig(pretrained=str(path), **options), 3)
    build_model(ModelConfig(pretrained=str(path), pretrained_partial=True, **options), 3, report=lines.append)
    (line,) = lines
    assert "entries loaded" in line
    assert ("missing" if source == "another stem" else "unused") in line


def test_weights_that_fit_are_reported(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "tv.pth")
    options = ("model.backbone=resnet18", f"model.pretrained={tmp_path}/tv.pth", "run.max_steps=1")
    train(make_config(*options))
    assert re.search(r"tv\.pth: 1\d\d entries loaded; 2 unused: fc\.weight, fc\.bias", capsys.readouterr().err)
    (tmp_path / "tv.pth").unlink()
    train(make_config(*options), resume=True)  # the checkpoint has the weights
    with pytest.raises(ConfigError, match=r"model\.pretrained = .*tv\.pth: no such file"):
        train(make_config(*options, folder="another"))
