"""The data sets of a configuration."""

from __future__ import annotations

from pspnet_fast.data import (
    DatasetError,
    ReadOptions,
    SegmentationDataset,
    eval_transform,
    open_dataset,
    train_transform,
)

from .config import DataConfig
from .errors import ConfigError


def read_options(data: DataConfig) -> ReadOptions:
    """How the picture files of a configuration are read."""
    return ReadOptions(value_range=data.value_range, max_pixels=data.max_pixels)


def open_split(data: DataConfig, split: str, *, training: bool = False) -> SegmentationDataset:
    """The training or validation images of a configuration, with their transform."""
    if data.root is None:
        raise ConfigError("data.root is not set: say where the data set lies, with --root DIR or data.root=DIR")
    list_file, key = (data.train_list, "train_list") if training else (data.val_list, "val_list")
    for name, value in ((key, list_file), ("classes", data.classes)):
        if data.name == "list" and value is None:
            raise ConfigError(f"data.{name} is not set: data.name=list needs data.{key} and data.classes")
        if data.name != "list" and value is not None:
            raise ConfigError(f"data.{name} = {value} is for data.name=list, not for {data.name}: remove one of them")
    if training:
        transform = train_transform(
            data.crop,
            scale=data.scale,
            rotate=data.rotate,
            blur=data.blur,
            flip=data.flip,
            mean=data.mean,
            std=data.std,
        )
    else:
        transform = eval_transform(data.mean, data.std)
    try:
        return open_dataset(
            data.name,
            data.root,
            split,
            transform=transform,
            list_file=list_file,
            classes=data.classes,
            reading=read_options(data),
        )
    except DatasetError as error:
        if data.name == "list":
            raise DatasetError(f"data.{key}: {error}") from error
        raise
    except ValueError as error:  # an argument, not the files
        raise ConfigError(f"data: {error}") from error
