"""Configurations: round trip, overrides, and errors that name the key and its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from pspnet_fast.engine import ConfigError, TrainConfig, config_from_dict, dump_config, load_config, ready_configs
from pspnet_fast.engine.config_io import changed_keys


def valid(*overrides: str) -> TrainConfig:
    return config_from_dict({"run": {"epochs": 2}}, overrides)


def test_round_trip(tmp_path: Path) -> None:
    config = valid("data.crop=[65, 97]", "optim.class_weights=[1, 2.5]", "eval.scales=[0.5, 1]", "run.folder=x y")
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", sorted(ready_configs()))
def test_ready_configs_load_by_name(name: str) -> None:
    assert load_config(name, ["data.root=/data"]).data.root == "/data"


def test_ready_configs_are_the_papers_recipe() -> None:
    assert set(ready_configs()) == {"cityscapes_r50", "cityscapes_r101", "ade20k_r50", "voc_r50", "camvid_r18"}
    crops = {"cityscapes_r50": 713, "cityscapes_r101": 713, "ade20k_r50": 473, "voc_r50": 473}
    for name, crop in crops.items():
        config = load_config(name)
        assert config.data.crop == crop
        optim = config.optim
        recipe = (optim.lr, optim.momentum, optim.weight_decay, optim.power, optim.head_lr_ratio, optim.aux_weight)
        assert recipe == (0.01, 0.9, 1e-4, 0.9, 10.0, 0.4)


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("optim.lr=1e-4", "optim", "lr", 1e-4),  # without a point YAML reads text
        ("optim.lr=1", "optim", "lr", 1.0),
        ("data.crop=[65, 97]", "data", "crop", (65, 97)),
        ("eval.crop=null", "eval", "crop", None),
        ("eval.crop=473", "eval", "crop", 473),
        ("optim.class_weights=frequency", "optim", "class_weights", "frequency"),
        ("optim.class_weights=[1, 2]", "optim", "class_weights", (1.0, 2.0)),
        ("run.compile=true", "run", "compile", True),
    ],
)
def test_override(text: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(valid(text), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim.lrr=0.1", ["unknown key 'optim.lrr'", "optim.lr"]),
        ("lr=0.1", ["unknown key 'lr'", "optim.lr"]),
        ("momentun=0.1", ["optim.momentum"]),
        ("optim.lr=fast", ["optim.lr = 'fast'", "a number"]),
        ("optim.lr=true", ["optim.lr = True", "a number"]),
        ("run.seed=1.5", ["run.seed = 1.5", "whole number"]),
        ("run.compile=1", ["run.compile = 1", "true or false"]),
        ("run.amp=fp8", ["run.amp = 'fp8'", "none, bf16, fp16"]),
        ("data.scale=[1]", ["data.scale = [1]", "a list of 2 float"]),
        ("data.scale=[2, 1]", ["data.scale = [2.0, 1.0]", "exceed"]),
        ("optim.batch_size=0", ["optim.batch_size = 0", "at least 1"]),
        ("data.flip=1.5", ["data.flip = 1.5", "between 0 and 1"]),
        ("optim.lr=.nan", ["optim.lr = nan"]),
        ("optim.lr", ["'optim.lr'", "optim.lr=0.02"]),
        ("optim.schedule_by=time", ["run.max_minutes"]),
    ],
)
def test_override_errors(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        valid(text)
    for part in parts:
        assert part in str(caught.value)


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, part in [
        ("optim: {learning: 1}", "unknown key 'optim.learning'"),
        ("optimm: {lr: 1}", "did you mean optim?"),
        ("optim: [1]", "section 'optim'"),
        ("- 1", "not the sections"),
        ("a: [", "cannot be read as YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
            load_config(path)
        assert part in str(caught.value)


def test_unknown_name_lists_the_ready_ones() -> None:
    with pytest.raises(ConfigError, match=r"camvid_r81.*did you mean camvid_r18"):
        load_config("camvid_r81")


def test_length_is_required() -> None:
    with pytest.raises(ConfigError, match=r"run\.epochs or run\.max_steps"):
        config_from_dict({})


def test_changed_keys() -> None:
    assert changed_keys(valid().to_dict(), valid("optim.lr=0.5").to_dict()) == ["optim.lr: 0.01 -> 0.5"]
