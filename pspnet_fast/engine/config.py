"""The options of a training run, as nested dataclasses.

Field names follow the literature and semseg's configuration files; defaults are semseg's recipe (SGD 0.01, momentum
0.9, weight decay 1e-4, poly 0.9 per iteration, heads at ten times the rate, auxiliary weight 0.4). Reading, overriding
and writing live in :mod:`pspnet_fast.engine.config_io`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import ConfigError

Amp = Literal["none", "bf16", "fp16"]
Size = int | tuple[int, int]


@dataclass
class DataConfig:
    """Which images, and how a training sample is cut from them."""

    name: str = "camvid"  # a key of pspnet_fast.data.DATASETS
    root: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    train_list: str | None = None  # semseg list files, for name: list
    val_list: str | None = None
    classes: int | None = None  # for name: list
    crop: Size = 473
    scale: tuple[float, float] = (0.5, 2.0)
    rotate: float = 10.0  # degrees either way
    blur: float = 0.5  # probability
    flip: float = 0.5  # probability
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    workers: int = 4  # loader processes for each training process


@dataclass
class ModelConfig:
    """The network; names as in :class:`pspnet_fast.PSPNet`."""

    layers: int = 50
    backbone: str | None = None  # a timm or torchvision name instead of the built-in ResNet
    bins: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    zoom_factor: Literal[1, 2, 4, 8] = 8
    use_ppm: bool = True
    norm: Literal["batch", "group"] = "batch"
    pretrained: str | None = None  # file of ImageNet weights for the backbone
    weights: str | None = None  # file of a whole PSPNet to start from (semseg's or this package's)


@dataclass
class OptimConfig:
    """Stochastic gradient descent and its loss."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    head_lr_ratio: float = 10.0  # ppm, cls and aux learn at lr * this
    power: float = 0.9  # lr * (1 - progress) ** power
    schedule_by: Literal["steps", "time"] = "steps"  # progress = step / steps, or minutes / run.max_minutes
    warmup_steps: int = 0
    batch_size: int = 16  # images of one optimizer step, over all processes and accumulated parts
    accumulate: int = 1  # parts into which a process cuts its share of the batch
    aux_weight: float = 0.4
    label_smoothing: float = 0.0
    class_weights: Literal["none", "frequency"] | tuple[float, ...] = "none"
    class_weight_power: float = 1.0  # for "frequency": (median frequency / frequency) ** power
    ema: float = 0.0  # decay of the averaged weights that are validated and kept as best; 0 = off


@dataclass
class EvalConfig:
    """How a whole image is predicted, in validation and by the commands evaluate and predict."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    crop: Size | None = None  # sliding window of this size; none = the whole image at once
    stride: float = 2 / 3  # of the crop
    base_size: int | None = None  # long side before the scales; none = the image's own
    batch_size: int = 1  # images (of equal size) at once, and windows of one image at once


@dataclass
class RunConfig:
    """Length, numerics and records of the run."""

    folder: str | None = None  # none = runs/<config>-<date>
    epochs: int | None = None
    max_steps: int | None = None
    max_minutes: float | None = None  # training stops after this time; the last validation comes on top
    seed: int = 0
    device: str = "auto"
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    amp: Amp = "bf16"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    validate_every: int = 1  # epochs; 0 = only after the last step
    save_every_steps: int = 500
    save_every_seconds: float = 600.0
    log_every: int = 10  # steps between two looks at the losses (each waits for the GPU once)
    pictures: int = 3  # validation pictures in TensorBoard; 0 = none


@dataclass
class TrainConfig:
    """Everything a run depends on; written in full to its folder."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dicts, lists, numbers and strings: what YAML and a weights-only checkpoint can hold."""
        return {
            section: {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
            for section, options in asdict(self).items()
        }

    def check(self) -> TrainConfig:
        """Raise :class:`ConfigError` for a value, or a combination of values, that no run can use."""
        for section, rules in _RULES.items():
            for key, (low, high) in rules.items():
                value = getattr(getattr(self, section), key)
                for number in value if isinstance(value, tuple) else (value,):
                    if number is not None and not low <= number <= high:
                        bounds = f"at least {low:g}" if high == _INF else f"between {low:g} and {high:g}"
                        raise ConfigError(f"{section}.{key} = {value} is out of range: it must be {bounds}")
        if self.data.scale[0] > self.data.scale[1]:
            raise ConfigError(f"data.scale = {list(self.data.scale)}: the first factor must not exceed the second")
        if not self.model.bins or not self.eval.scales:
            raise ConfigError("model.bins and eval.scales need at least one entry")
        self._check_length()
        return self

    def _check_length(self) -> None:
        run = self.run
        if self.optim.schedule_by == "time" and run.max_minutes is None:
            raise ConfigError("optim.schedule_by = time needs run.max_minutes, over which the rate falls")
        if self.optim.schedule_by == "steps" and run.epochs is None and run.max_steps is None:
            raise ConfigError(
                "how long to train? set run.epochs or run.max_steps, or run.max_minutes with optim.schedule_by=time"
            )


_INF = float("inf")
_TINY = 1e-12

# Lowest and highest value of each number, both allowed; for a tuple, of each entry.
_RULES: dict[str, dict[str, tuple[float, float]]] = {
    "data": {
        "classes": (2, 254), "crop": (1, _INF), "scale": (_TINY, _INF), "rotate": (0, 180), "blur": (0, 1),
        "flip": (0, 1), "std": (_TINY, _INF), "workers": (0, _INF),
    },
    "model": {"layers": (1, _INF), "bins": (1, _INF), "dropout": (0, 1)},
    "optim": {
        "lr": (0, _INF), "momentum": (0, 1), "weight_decay": (0, _INF), "head_lr_ratio": (0, _INF), "power": (0, _INF),
        "warmup_steps": (0, _INF), "batch_size": (1, _INF), "accumulate": (1, _INF), "aux_weight": (0, _INF),
        "label_smoothing": (0, 1), "class_weight_power": (0, _INF), "ema": (0, 1 - _TINY),
    },
    "eval": {
        "scales": (_TINY, _INF), "crop": (1, _INF), "stride": (_TINY, 1), "base_size": (1, _INF),
        "batch_size": (1, _INF),
    },
    "run": {
        "epochs": (1, _INF), "max_steps": (1, _INF), "max_minutes": (_TINY, _INF), "seed": (0, 2**63 - 1),
        "validate_every": (0, _INF), "save_every_steps": (1, _INF), "save_every_seconds": (0, _INF),
        "log_every": (1, _INF), "pictures": (0, _INF),
    },
}  # fmt: skip
