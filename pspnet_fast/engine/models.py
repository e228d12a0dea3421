"""Networks from configurations and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pspnet_fast.data import DatasetInfo
from pspnet_fast.nn import PSPNet
from pspnet_fast.nn.weights import LoadReport, load_checkpoint_weights, load_imagenet_resnet

from . import checkpoint
from .config import ModelConfig, TrainConfig
from .config_io import config_from_dict
from .errors import CheckpointError, ConfigError


def build_model(
    options: ModelConfig,
    num_classes: int,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    load_weights: bool = True,
    report: Callable[[str], object] | None = None,
) -> PSPNet:
    """The network of a configuration, on the CPU, with its loss.

    Args:
        load_weights: read the files ``pretrained`` and ``weights`` of ``options``.
        report: called with a line on each file of weights: what was loaded, what is missing, what was not used.

    Raises:
        ConfigError: a value that the network does not take, or a file of weights that does not fit.
    """
    criterion = nn.CrossEntropyLoss(ignore_index=ignore_index, label_smoothing=label_smoothing)
    if class_weights is not None:
        # A property of the data, not of the network: out of state_dict, so that checkpoints fit with and without.
        criterion.register_buffer("weight", class_weights.float(), persistent=False)
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
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    for key, file in (("model.pretrained", options.pretrained), ("model.weights", options.weights)):
        if file is not None and load_weights:
            line = f"{key} = {file}: {_load_weights(model, key, file, partial=options.pretrained_partial)}"
            if report is not None:
                report(line)
    return model


def dataset_record(info: DatasetInfo) -> dict[str, Any]:
    """A data set's description as plain values, for a checkpoint."""
    return {
        "name": info.name,
        "classes": list(info.classes),
        "palette": [list(color) for color in info.palette],
        "ignore_index": info.ignore_index,
    }


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode with what it was trained on."""

    model: PSPNet
    config: TrainConfig
    info: DatasetInfo
    step: int | None


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
            info = read_dataset_record(state["dataset"])
    elif config is None or info is None:
        raise CheckpointError(
            f"{path}: does not say which network it holds; name its configuration (--config) and data set (--data)"
        )
    with checkpoint.interpreting(path):
        weights = state["ema"]["model"] if "ema" in state else state.get("model", state)
    options = config.model
    model = build_model(options, info.num_classes, ignore_index=info.ignore_index, load_weights=False)
    try:
        load_checkpoint_weights(model, weights)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: does not fit {_describe(options)} with {info.num_classes} classes ({info.name}): {error}"
        ) from error
    return TrainedModel(model.eval(), config, info, state.get("step"))


def check_classes(path: str | Path, trained: DatasetInfo, data: DatasetInfo) -> None:
    """Raise :class:`CheckpointError` unless the checkpoint's classes are the data set's."""
    if trained.num_classes != data.num_classes:
        raise CheckpointError(
            f"{path}: has {trained.num_classes} classes ({trained.name}), but {data.name} has {data.num_classes}; "
            f"choose a checkpoint trained on {data.name}, or the data set {trained.name}"
        )


def _load_weights(model: PSPNet, key: str, file: str, *, partial: bool) -> LoadReport:
    pretrained = key == "model.pretrained"
    load = load_imagenet_resnet if pretrained else load_checkpoint_weights
    try:
        done = load(model, file)
    except FileNotFoundError as error:
        raise ConfigError(f"{key} = {file}: no such file") from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{key} = {file}: {error}") from error
    if pretrained and done.partial and not partial:
        raise ConfigError(
            f"{key} = {file}: fits the backbone in part only: {done}. Choose the weights of this backbone; for a whole "
            "PSPNet use model.weights; or set model.pretrained_partial=true to train with what was loaded"
        )
    return done


def read_dataset_record(record: Mapping[str, Any]) -> DatasetInfo:
    """The inverse of :func:`dataset_record`."""
    return DatasetInfo(
        name=record["name"],
        classes=tuple(record["classes"]),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in record["palette"]),
        ignore_index=record["ignore_index"],
    )


def _describe(options: ModelConfig) -> str:
    return (
        f"a PSPNet with backbone {options.backbone}" if options.backbone else f"a PSPNet with {options.layers} layers"
    )
