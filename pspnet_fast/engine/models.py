"""Networks from configurations and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pspnet_fast.data import DatasetInfo, eval_transform
from pspnet_fast.nn import DualCrossEntropyLoss, FocalLoss, LowResolutionLoss, OhemCrossEntropyLoss, PSPNet, WithDice
from pspnet_fast.nn.backbones import IMAGENET, published_weights
from pspnet_fast.nn.weights import CLASS_LAYERS, load_checkpoint_weights, load_imagenet_resnet, read_state_dict

from . import checkpoint
from .config import Amp, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from .config_io import config_from_dict
from .datasets import kind_of
from .errors import CheckpointError, ConfigError, InferenceError
from .inference import autocast, label_strips, predict_probabilities

DATASET = TypeAdapter(DatasetInfo)  # between a data set's description and the plain values that a checkpoint holds


def build_loss(options: OptimConfig, ignore_index: int, class_weights: Tensor | None) -> nn.Module:
    """The criterion for :class:`pspnet_fast.PSPNet`: ``optim.loss`` and ``optim.dice``, all of low-resolution logits.

    Class weights are no entry of its ``state_dict``: they belong to the data, not to the network.
    """
    kind, smoothing = options.loss, options.label_smoothing
    criterion: nn.Module
    if kind.name == "ohem":
        criterion = OhemCrossEntropyLoss(
            threshold=kind.threshold,
            min_kept=kind.min_kept,
            share=kind.share,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
        )
    elif kind.name == "focal":
        criterion = FocalLoss(gamma=kind.gamma, ignore_index=ignore_index)
    elif options.dice:
        criterion = DualCrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing)
    else:
        criterion = nn.CrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing)
    if class_weights is not None:
        criterion.register_buffer("weight", class_weights.float(), persistent=False)
    if not options.dice:
        return criterion
    assert isinstance(criterion, LowResolutionLoss)
    return WithDice(criterion, options.dice, ignore_index=ignore_index)


def build_model(
    options: ModelConfig,
    num_classes: int,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    criterion: nn.Module | None = None,
    load_weights: bool = True,
    report: Callable[[str], object] | None = None,
) -> PSPNet:
    """The network of a configuration, on the CPU, with its loss.

    Args:
        criterion: the loss (:func:`build_loss`); by default the cross-entropy that
            ``class_weights`` and ``label_smoothing`` say.
        load_weights: read the files ``pretrained`` and ``weights`` of ``options``.
        report: called with a line on each file of weights: what was loaded, what is missing, what was not used.

    Raises:
        ConfigError: a value that the network does not take, or a file of weights that does not fit.
    """
    if criterion is None:
        criterion = build_loss(OptimConfig(label_smoothing=label_smoothing), ignore_index, class_weights)
    try:
        model = PSPNet(
            layers=options.layers,
            bins=options.bins,
            dropout=options.dropout,
            classes=num_classes,
            zoom_factor=options.zoom_factor,
            use_ppm=options.use_ppm,
            criterion=criterion,
            pretrained=False,
            backbone=options.backbone,
            norm=options.norm,
            recompute=options.checkpoint,
        )
        model.freeze(*options.freeze)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    for key, file in (("model.pretrained", options.pretrained), ("model.weights", options.weights)):
        if file is not None and load_weights:
            line = f"{key} = {file}: {_load_weights(model, options, key, file)}"
            if report is not None:
                report(line)
    return model


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode with what it was trained on."""

    model: PSPNet
    config: TrainConfig
    info: DatasetInfo
    step: int | None

    @classmethod
    def load(cls, path: str | Path) -> TrainedModel:
        """The network of a run's ``best.pt`` or ``last.pt``; other checkpoints need :func:`load_trained`."""
        return load_trained(path)

    @property
    def device(self) -> torch.device:
        """Where the network is, and predicts."""
        return next(self.model.parameters()).device

    def predict(self, image: Tensor, options: EvalConfig | None = None, *, amp: Amp = "none") -> Tensor:
        """The labels of a picture, uint8 [H, W] on the CPU; ``model.optimize_for_inference()`` makes it faster.

        It is normalised strip by strip, so that a large one has no copy in floating point.

        Args:
            image: uint8 [3, H, W], RGB.
            options: scales, mirroring and window; those of the training configuration by default.
            amp: "bf16" and "fp16" compute in that precision.

        Raises:
            InferenceError: an image of another dtype or shape.
        """
        _check_picture(image)
        with autocast(self.device, amp):
            strips = label_strips(self.model, image[None], options or self.config.eval, self._prepared)
            return torch.cat([strip[0].to("cpu", torch.uint8) for strip in strips])

    def probabilities(self, image: Tensor, options: EvalConfig | None = None, *, amp: Amp = "none") -> Tensor:
        """The probability of each class at each pixel, float32 [classes, H, W] on the CPU; as :meth:`predict`."""
        _check_picture(image)
        with autocast(self.device, amp):
            return predict_probabilities(self.model, self._prepared(image[None]), options or self.config.eval)[0].cpu()

    def _prepared(self, rows: Tensor) -> Tensor:
        """Normalised on the network's device: uint8 [1, 3, H, W] -> float32."""
        transform = eval_transform(self.config.data.mean, self.config.data.std)
        normalised, _ = transform(rows[0], torch.zeros(rows.shape[2:], dtype=torch.uint8))
        return normalised[None].to(self.device, memory_format=torch.channels_last)


def _check_picture(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise InferenceError(f"image is {kind_of(image)}; it must be uint8 [3, H, W], RGB")


Trained = TrainedModel


def load_trained(
    path: str | Path, *, config: TrainConfig | None = None, info: DatasetInfo | None = None
) -> TrainedModel:
    """The network of a checkpoint.

    A checkpoint of :func:`~pspnet_fast.engine.train.train` says which network and classes it holds; where it keeps
    averaged weights, those are taken. Any other (semseg's, say) needs ``config`` and ``info``.

    Raises:
        CheckpointError: missing or damaged file, weights of another network or number of classes.
    """
    state = checkpoint.load(path)
    if "config" in state and "dataset" in state:
        with checkpoint.interpreting(path):
            config = config_from_dict(state["config"], source=str(path))
            info = DATASET.validate_python(state["dataset"])
    elif config is None or info is None:
        raise CheckpointError(
            f"{path}: does not say which network it holds; name its configuration (--config) and data set (--data; of "
            "your own, data.classes too)"
        )
    with checkpoint.interpreting(path):
        weights = state["ema"]["model"] if "ema" in state else state.get("model", state)
    options = config.model
    model = build_model(options, info.num_classes, ignore_index=info.ignore_index, load_weights=False)
    try:
        load_checkpoint_weights(model, weights)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        backbone = f"backbone {options.backbone}" if options.backbone else f"{options.layers} layers"
        raise CheckpointError(
            f"{path}: does not fit a PSPNet with {backbone} with {info.num_classes} classes ({info.name}): {error}"
        ) from error
    return TrainedModel(model.eval(), config, info, state.get("step"))


def check_classes(path: str | Path, trained: DatasetInfo, data: DatasetInfo) -> None:
    """Raise :class:`CheckpointError` unless the checkpoint's classes are the data set's."""
    if trained.num_classes != data.num_classes:
        raise CheckpointError(
            f"{path}: has {trained.num_classes} classes ({trained.name}), but {data.name} has {data.num_classes}; "
            f"choose a checkpoint trained on {data.name}, or the data set {trained.name}"
        )


def _load_weights(model: PSPNet, options: ModelConfig, key: str, file: str) -> str:
    """What was loaded from the file that ``key`` names."""
    source: Any = file
    try:
        if key == "model.weights":
            return _load_checkpoint(model, file)
        if file == IMAGENET:
            source, file = published_weights(options.layers, options.backbone)
        done = load_imagenet_resnet(model, source)
    except FileNotFoundError as error:
        raise ConfigError(f"{key} = {file}: no such file") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{key} = {file}: {error}") from error
    if done.partial and not options.pretrained_partial:
        raise ConfigError(
            f"{key} = {file}: fits the backbone in part only: {done}. Choose the weights of this backbone; for a whole "
            "PSPNet use model.weights; or set model.pretrained_partial=true to train with what was loaded"
        )
    return f"{file}: {done}" if source is not file else str(done)


def _load_checkpoint(model: PSPNet, file: str) -> str:
    """All of a PSPNet; of one with other classes, all but the class layers."""
    state = read_state_dict(file)
    theirs = next((value.shape[0] for key, value in state.items() if key == "cls.4.weight"), model.classes)
    if theirs == model.classes:
        return str(load_checkpoint_weights(model, state))
    done = load_checkpoint_weights(model, state, skip=CLASS_LAYERS)
    return f"{done}; it has {theirs} classes and this network {model.classes}: the class layers start anew"
