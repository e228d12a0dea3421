"""The options of a training run, as nested pydantic models.

Field names follow the literature and semseg's configuration files; defaults are semseg's recipe (SGD 0.01, momentum
0.9, weight decay 1e-4, poly 0.9 per iteration, heads at ten times the rate, auxiliary weight 0.4). Types are strict (a
boolean is no number, a number no text) and every number is finite. :mod:`pspnet_fast.engine.config_io` reads,
overrides and writes configurations, and turns pydantic's errors into :class:`ConfigError`.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from pspnet_fast.data import IMAGE_SUFFIXES, IMAGENET_MEAN, IMAGENET_STD, OwnLabels
from pspnet_fast.data.labels import parse_color
from pspnet_fast.reference import DEFAULT_AUX_WEIGHT

from .errors import ConfigError


def _whole(value: Any) -> Any:
    """JSON has whole numbers as text in the place of keys."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _color(value: Any) -> Any:
    try:
        return parse_color(value)
    except ValueError as error:
        raise ValueError("should have colours as #rrggbb or three numbers from 0 to 255") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 (without a point) as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


T = TypeVar("T")
Real = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
File = Annotated[str, AfterValidator(os.path.expanduser)]
# Strict(False) accepts YAML's lists as tuples; it does not reach the entries.
Pair = Annotated[tuple[T, T], Strict(False)]
Triple = Annotated[tuple[T, T, T], Strict(False)]
Rgb = Annotated[tuple[int, int, int], BeforeValidator(_color)]
OneOrMore = Annotated[tuple[T, ...], Strict(False), Field(min_length=1)]
Size = Count | Pair[Count]
Amp = Literal["none", "bf16", "fp16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which images, and how a training sample is cut from them."""

    name: str = "camvid"  # a key of pspnet_fast.data.DATASETS
    root: File | None = None
    train_split: str = "train"
    val_split: str | None = "val"  # none = no validation
    # Of name: list, and folder. What the labels mean is in pspnet_fast.data.OwnLabels.
    train_list: File | None = None  # of list: semseg list files
    val_list: File | None = None
    image_folder: str = "images/{split}"  # of folder, below the root; without {split}, see val_fraction
    label_folder: str = "labels/{split}"
    image_suffixes: OneOrMore[str] = IMAGE_SUFFIXES  # what an image's name has instead of the label's suffix
    label_suffix: str = ".png"
    val_fraction: Annotated[Real, Field(ge=0, lt=1)] = 0.0  # held out of the training images for validation
    split_seed: CountOrZero = 0
    classes: Annotated[int, Field(ge=2, le=255)] | OneOrMore[str] | dict[str, Rgb] | None = None
    labels: Literal["indices", "colors"] = "indices"
    values: dict[Annotated[int | str, BeforeValidator(_whole)], int | str] = Field(default_factory=dict)
    ignore_value: Annotated[int, Field(ge=0, lt=65536)] | None = 255
    reduce_zero_label: bool = False
    unknown_labels: Literal["error", "ignore"] = "error"
    allow_absent_classes: bool = False  # train although a class has no training pixel
    crop: Size = 473
    scale: Pair[Positive] = (0.5, 2.0)
    rotate: Annotated[Real, Field(ge=0, le=180)] = 10.0  # degrees either way
    blur: Fraction = 0.5  # probability
    flip: Fraction = 0.5  # probability
    # Of one class in the labels of a crop; with a larger share, another crop is drawn.
    cat_max_ratio: Annotated[Real, Field(gt=0, le=1)] = 1.0
    jitter: Fraction = 0.0  # of brightness, contrast and saturation, and a quarter of it of the hue
    transform: str | None = None  # package.module:function of (image, label), called before the crop
    mean: Triple[NonNegative] = IMAGENET_MEAN  # of pixel values from 0 to 1
    std: Triple[Positive] = IMAGENET_STD
    value_range: Pair[Real] | None = None  # (black, white) of images with more than 8 bits a sample
    max_pixels: Count | None = None  # of a picture file; none = Pillow's limit
    workers: CountOrZero = 4  # loader processes for each training process

    @property
    def own(self) -> OwnLabels | None:
        """Classes and labels of one's own data, where those are described."""
        if self.classes is None:
            return None
        return OwnLabels(
            self.classes, self.labels, self.values, self.ignore_value, self.reduce_zero_label, self.unknown_labels
        )

    @property
    def validates(self) -> bool:
        """Whether a run validates."""
        return self.val_split is not None

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.own is not None:
            try:
                self.own.table()
            except ValueError as error:
                raise ValueError(f"data.{error}") from error
        if max(*self.mean, *self.std) > 1:
            raise ValueError(
                f"data.mean = {list(self.mean)} and data.std = {list(self.std)} are of pixel values from 0 to 1: "
                "divide those of 0 to 255 by 255"
            )
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"data.scale = {list(self.scale)}: the first factor must not exceed the second")
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"data.value_range = {list(self.value_range)}: the first value must be below the second")
        if self.blur and min(self.crop if isinstance(self.crop, tuple) else (self.crop,)) < 3:
            raise ValueError(f"data.crop = {self.crop}: blurred crops need at least 3 pixels a side; set data.blur=0")
        return self


class ModelConfig(Section):
    """The network; names as in :class:`pspnet_fast.PSPNet`."""

    layers: Count = 50
    backbone: str | None = None  # a timm or torchvision name instead of the built-in ResNet
    bins: OneOrMore[Count] = (1, 2, 3, 6)
    dropout: Fraction = 0.1
    zoom_factor: Literal[1, 2, 4, 8] = 8
    use_ppm: bool = True
    norm: Literal["batch", "group"] = "batch"
    pretrained: File | None = None  # ImageNet weights for the backbone: a file, or imagenet for published ones
    pretrained_partial: bool = False  # train although they fit the backbone in part only
    weights: File | None = None  # weights of a whole PSPNet to start from (semseg's or this package's)
    freeze: Annotated[tuple[str, ...], Strict(False)] = ()  # backbone, or layer0 to layer4, ppm, cls, aux
    checkpoint: Literal["none", "selective", "full"] = "none"  # what backward recomputes, to save memory


class CrossEntropyOptions(Section):
    name: Literal["cross_entropy"] = "cross_entropy"


class OhemOptions(Section):
    """:class:`pspnet_fast.nn.OhemCrossEntropyLoss`: hard pixels only, by their probability or by their share."""

    name: Literal["ohem"] = "ohem"
    threshold: Annotated[Real, Field(gt=0, le=1)] = 0.7
    min_kept: Count = 100_000  # pixels an image
    share: Annotated[Real, Field(gt=0, le=1)] | None = None  # in the place of both


class FocalOptions(Section):
    """:class:`pspnet_fast.nn.FocalLoss`."""

    name: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0


def _loss(value: Any) -> Any:
    """The name of a loss alone, with its defaults."""
    return {"name": value} if isinstance(value, str) else value


Loss = Annotated[CrossEntropyOptions | OhemOptions | FocalOptions, Field(discriminator="name"), BeforeValidator(_loss)]


DEFAULT_LR = {"sgd": 0.01, "adam": 1e-4, "adamw": 1e-4}


class OptimConfig(Section):
    """The optimizer, its rate over the run, and the loss."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: NonNegative = DEFAULT_LR["sgd"]  # adam and adamw: 1e-4
    momentum: Fraction = 0.9  # of sgd
    nesterov: bool = False  # of sgd
    betas: Pair[Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.999)  # of adam and adamw
    weight_decay: NonNegative = 1e-4
    clip_norm: Positive | None = None  # largest norm of all gradients together
    head_lr_ratio: NonNegative = 10.0  # ppm, cls and aux learn at lr * this
    schedule: Literal["poly", "cosine", "onecycle"] = "poly"
    power: NonNegative = 0.9  # of poly: lr * (1 - progress) ** power
    schedule_by: Literal["steps", "time"] = "steps"  # progress = step / steps, or minutes / run.max_minutes
    warmup_steps: CountOrZero = 0
    batch_size: Count = 16  # images of one optimizer step, over all processes and accumulated parts
    accumulate: Count = 1  # parts into which a process cuts its share of the batch
    aux_weight: NonNegative = DEFAULT_AUX_WEIGHT
    loss: Loss = Field(default_factory=CrossEntropyOptions)  # a name, or {name: ohem, threshold: 0.7}
    dice: NonNegative = 0.0  # weight of the Dice loss that is added
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "frequency"] | OneOrMore[NonNegative] = "none"
    class_weight_power: NonNegative = 1.0  # for "frequency": (median frequency / frequency) ** power
    ema: Annotated[Real, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights that are validated; 0 = off

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_optimizer(cls, options: Any) -> Any:
        if isinstance(options, dict) and options.get("name") in DEFAULT_LR:
            return {"lr": DEFAULT_LR[options["name"]], **options}
        return options

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov = true needs a momentum: set optim.momentum, 0.9 for instance")
        if self.label_smoothing and self.loss.name == "focal":
            raise ValueError("optim.label_smoothing has no meaning for optim.loss=focal: set one of the two")
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise ValueError(f"optim.class_weights = {list(self.class_weights)}: at least one must be above 0")
        return self


class EvalConfig(Section):
    """How a whole image is predicted, in validation and by the commands evaluate and predict."""

    scales: OneOrMore[Positive] = (1.0,)
    flip: bool = False
    crop: Size | None = None  # sliding window of this size; none = the whole image at once
    stride: Annotated[Real, Field(gt=0, le=1)] = 2 / 3  # of the crop
    base_size: Count | None = None  # long side before the scales; none = the image's own
    batch_size: Count = 1  # images (of equal size) at once, and windows of one image at once


class RunConfig(Section):
    """Length, numerics and records of the run."""

    folder: File | None = None  # none = runs/<config>-<date>
    epochs: Count | None = None
    max_steps: Count | None = None
    max_minutes: Positive | None = None  # training stops after this time; the last validation comes on top
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    amp: Amp = "bf16"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    validate_every: CountOrZero = 1  # epochs; 0 = only after the last step
    save_every_steps: Count = 500
    save_every_seconds: NonNegative = 600.0
    log_every: Count = 10  # steps between two looks at the losses (each waits for the GPU once)
    pictures: CountOrZero = 3  # validation pictures that the logger shows; 0 = none
    logger: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    best: str = "miou"  # the metric of best.pt: miou, macc, accuracy, iou_CLASS, or train_loss, the lowest
    patience: Count | None = None  # validations without a better one, after which the run ends
    keep_last: CountOrZero = 0  # checkpoints step-N.pt that stay besides last.pt


class TrainConfig(Section):
    """Everything a run depends on; written in full to its folder."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dicts, lists, numbers and strings: what YAML and a weights-only checkpoint can hold."""
        return self.model_dump(mode="json")

    def check(self) -> TrainConfig:
        """Raise :class:`ConfigError` where the length of a run does not follow from the options."""
        if self.optim.schedule_by == "time" and self.run.max_minutes is None:
            raise ConfigError("optim.schedule_by = time needs run.max_minutes, over which the rate falls")
        if self.optim.schedule_by == "steps" and self.run.epochs is None and self.run.max_steps is None:
            raise ConfigError(
                "the run has no length: set run.epochs or run.max_steps, "
                "or run.max_minutes together with optim.schedule_by=time"
            )
        return self
