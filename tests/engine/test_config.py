"""Configurations: round trip, overrides, and errors that name the key and its neighbours."""

from __future__ import annotations

import random
import re
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from pspnet_fast.engine import ConfigError, TrainConfig, config_from_dict, dump_config, load_config, ready_configs
from pspnet_fast.engine.config_io import KEYS, changed_keys


def valid(*overrides: str) -> TrainConfig:
    return config_from_dict({"run": {"epochs": 2}}, overrides)


def test_round_trip(tmp_path: Path) -> None:
    config = valid("data.crop=[65, 97]", "optim.class_weights=[1, 2.5]", "eval.scales=[0.5, 1]", "run.folder=x y")
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_ready_configs_are_the_papers_recipe() -> None:
    crops = {"cityscapes_r50": 713, "cityscapes_r101": 713, "ade20k_r50": 473, "voc_r50": 473}
    assert set(ready_configs()) == {*crops, "camvid_r18"}
    assert load_config("camvid_r18", ["data.root=/data"]).data.root == "/data"
    for name, crop in crops.items():
        config = load_config(name)
        assert config.data.crop == crop
        optim = config.optim
        recipe = (optim.lr, optim.momentum, optim.weight_decay, optim.power, optim.head_lr_ratio, optim.aux_weight)
        assert recipe == (0.01, 0.9, 1e-4, 0.9, 10.0, 0.4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.lr=1e-4", 1e-4),  # without a point YAML reads text
        ("optim.lr=1", 1.0),
        ("data.crop=[65, 97]", (65, 97)),
        ("data.crop=3", 3),
        ("data.crop=1; data.blur=0", 1),
        ("eval.crop=null", None),
        ("eval.crop=473", 473),
        ("optim.class_weights=frequency", "frequency"),
        ("optim.class_weights=[1, 2]", (1.0, 2.0)),
        ("run.compile=true", True),
        *((f"{key}=~/x", "/home/someone/x") for key in ("data.root", "data.train_list", "data.val_list")),
        *((f"{key}=~/x", "/home/someone/x") for key in ("model.weights", "run.folder")),
    ],
)
def test_override(monkeypatch: pytest.MonkeyPatch, text: str, value: object) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    found = attrgetter(text.partition("=")[0])(valid(*text.split("; ")))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim.lr=fast", ["optim.lr = 'fast'", "a valid number"]),
        ("optim.lr=true", ["optim.lr = True", "a valid number"]),
        ("run.seed=1.5", ["run.seed = 1.5", "a valid integer"]),
        ("run.compile=1", ["run.compile = 1", "a valid boolean"]),
        ("run.amp=fp8", ["run.amp = 'fp8'", "'none', 'bf16' or 'fp16'"]),
        ("run.folder=7", ["run.folder = 7", "a valid string"]),
        ("data.scale=[1]", ["data.scale = [1]", "more entries"]),
        ("data.scale=[1, 2, 3]", ["data.scale = [1, 2, 3]", "at most 2 items"]),
        ("data.scale=[2, 1]", ["data.scale = [2.0, 1.0]", "exceed"]),
        ("optim.batch_size=0", ["optim.batch_size = 0", "greater than or equal to 1"]),
        ("data.flip=1.5", ["data.flip = 1.5", "less than or equal to 1"]),
        ("model.bins=[]", ["model.bins = []", "at least 1 item"]),
        ("data.crop=[65, a]", ["data.crop = [65, 'a']", "a valid integer"]),
        ("optim.class_weights=freq", ["optim.class_weights = 'freq'", "'none' or 'frequency' or be a valid list"]),
        ("optim.lr", ["'optim.lr'", "optim.lr=0.02"]),
        ("optim.lr=[", ["'optim.lr=['", "not valid YAML"]),
        ("optim.schedule_by=time", ["run.max_minutes"]),
        ("run.epochs=null", ["the run has no length: set run.epochs or run.max_steps"]),
        ("data.value_range=[2, 1]", ["data.value_range = [2.0, 1.0]: the first value must be below the second"]),
        ("optim.loss=fokal", ["it must be 'cross_entropy', 'ohem', 'focal'"]),
        ("optim.loss={name: ohem, gamma: 1}", ["it must have no 'gamma'"]),
        ("optim.loss={gamma: 1}", ["it must have a name"]),
        ("optim.loss=focal; optim.label_smoothing=0.1", ["optim.label_smoothing has no meaning for optim.loss=focal"]),
        ("data.mean=[123.675, 116.28, 103.53]", ["data.mean", "divide", "255"]),
        ("data.mean=[0, 0, 0]; data.std=[58.4, 57.1, 57.4]", ["data.std", "divide", "255"]),
        ("data.scale=[1, .inf]", ["data.scale = [1, inf]", "finite"]),
        ("optim.class_weights=[1, .nan]", ["optim.class_weights", "finite"]),
        ("optim.class_weights=[1, -1]", ["optim.class_weights = [1, -1]", "greater than or equal to 0"]),
        ("optim.class_weights=[0, 0]", ["optim.class_weights = [0.0, 0.0]", "above 0"]),
        ("optim.nesterov=true; optim.momentum=0", ["optim.nesterov", "optim.momentum"]),
        ("data.crop=1", ["data.crop = 1", "data.blur=0"]),
        ("data.crop=[65, 2]", ["data.crop = (65, 2)", "data.blur=0"]),
    ],
)
def test_override_errors(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        valid(*text.split("; "))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("key", [key for key in KEYS if key.split(".")[1] not in ("name", "root", "device", "folder")])
@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_no_number_is_infinite_or_undefined(key: str, number: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        valid(f"{key}={number}")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.lrr", "did you mean optim.lr?"),
        ("lr", "did you mean optim.lr?"),
        ("momentun", "did you mean optim.momentum?"),
        ("data.crp", "did you mean data.crop?"),  # not eval.crop
        ("eval.crp", "did you mean eval.crop?"),
        ("optim.batchsize", "did you mean optim.batch_size?"),
        ("optimm.batch_size", "did you mean optim.batch_size?"),
        ("eval.workers", "did you mean data.workers?"),
        ("crop", "did you mean data.crop or eval.crop?"),
        ("run.qqq", "known: run.folder, "),
        ("qqq.qqq", "known: data, model, optim, eval, run"),
    ],
)
def test_unknown_keys_name_the_nearest_in_the_right_section(key: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"override: unknown key {key!r}; {hint}")):
        valid(f"{key}=1")
    section, dot, name = key.partition(".")
    if dot and section in TrainConfig.model_fields:
        (tmp_path / "mine.yaml").write_text(f"{section}: {{{name}: 1}}")
        with pytest.raises(ConfigError, match=rf"mine\.yaml: unknown key {re.escape(f'{key!r}; {hint}')}"):
            load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("optimm: {lr: 1}", "unknown section 'optimm'; did you mean optim?"),
        ("lr: 1", "unknown section 'lr'; did you mean optim.lr?"),
        ("1: 2", "unknown section 1"),
        ("optim: [1]", "section 'optim'"),
        ("optim: {1: 2}", "unknown key 'optim.1'"),
        ("- 1", "not the sections"),
        ("a: [", "not valid YAML"),
        ("optim: {lr: 2001-99-99}", "not valid YAML"),  # PyYAML raises ValueError
        ("optim: {lr: 1}\nrun: {epochs: 1}\noptim: {power: 1}", "'optim' is given twice"),
        ("optim: {lr: 1, lr: 2}", "'lr' is given twice"),
    ],
)
def test_file_errors_name_the_file(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        load_config(path)
    assert part in str(caught.value)


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("run: {epochs: 3}", encoding="utf-8-sig")
    assert load_config(path).run.epochs == 3
    path.write_text("run: {epochs: 3}", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"mine\.yaml: cannot be read as UTF-8"):
        load_config(path)


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    good, path = ready_configs()["camvid_r18"].read_bytes(), tmp_path / "damaged.yaml"
    rng, refused = random.Random(0), 0
    for _ in range(300):
        content = bytearray(good)
        content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            load_config(path)
        except ConfigError:
            refused += 1
    assert refused > 50


# A run's config.yaml as it was written before the options were pydantic models.
EARLIER = """
data: {name: camvid, root: data/camvid, train_split: train, val_split: val, train_list: null, val_list: null,
  classes: null, crop: 201, scale: [0.5, 2.0], rotate: 10.0, blur: 0.5, flip: 0.5, mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225], workers: 1}
model: {layers: 18, backbone: null, bins: [1, 2, 3, 6], dropout: 0.1, zoom_factor: 8, use_ppm: true, norm: batch,
  pretrained: null, weights: null}
optim: {lr: 0.05, momentum: 0.9, weight_decay: 0.0001, nesterov: false, head_lr_ratio: 1.0, power: 0.9,
  schedule_by: time, warmup_steps: 20, batch_size: 8, accumulate: 1, aux_weight: 0.4, label_smoothing: 0.0,
  class_weights: frequency, class_weight_power: 0.5, ema: 0.0}
eval: {scales: [1.0], flip: false, crop: [65, 97], stride: 0.6666666666666666, base_size: null, batch_size: 1}
run: {folder: runs/one, epochs: null, max_steps: null, max_minutes: 22.5, seed: 0, device: auto, backend: auto,
  amp: bf16, channels_last: true, compile: false, deterministic: false, validate_every: 10, save_every_steps: 100,
  save_every_seconds: 120.0, log_every: 10, pictures: 3}
"""


def test_files_of_earlier_versions_load(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EARLIER)
    found, tree = load_config(path).to_dict(), yaml.safe_load(EARLIER)
    assert {section: {key: found[section][key] for key in options} for section, options in tree.items()} == tree
    assert config_from_dict(tree) == load_config(path)  # a checkpoint holds the same tree


def test_assignments_are_checked() -> None:
    config = valid()
    config.optim.lr = 0.5
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        config.optim.lr = -1.0
    assert config.optim.lr == 0.5


def test_changed_keys() -> None:
    assert changed_keys(valid().to_dict(), valid("optim.lr=0.5").to_dict()) == ["optim.lr: 0.01 -> 0.5"]
