"""The data sets of a configuration."""

from __future__ import annotations

from pspnet_fast.data import SegmentationDataset, eval_transform, open_dataset, train_transform

from .config import DataConfig
from .errors import ConfigError


def open_split(data: DataConfig, split: str, *, training: bool = False) -> SegmentationDataset:
    """The training or validation images of a configuration, with their transform."""
    if data.root is None:
        raise ConfigError("data.root is not set: say where the data set lies, with --root DIR or data.root=DIR")
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
            list_file=data.train_list if training else data.val_list,
            classes=data.classes,
        )
    except ValueError as error:
        if type(error) is ValueError:  # an argument, not the files
            raise ConfigError(f"data: {error}") from error
        raise
