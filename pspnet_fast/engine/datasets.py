"""The data sets of a configuration."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pspnet_fast.data import (
    DatasetError,
    DatasetInfo,
    Layout,
    ReadOptions,
    SegmentationDataset,
    SegmentationTransform,
    eval_transform,
    open_dataset,
    train_transform,
)
from pspnet_fast.data.dataset import sample_names
from pspnet_fast.files import replacing

from .config import DataConfig
from .errors import ConfigError

OWN = ("list", "folder")  # data sets whose classes the configuration tells
WRITTEN_SPLIT = "split.yaml"  # in the run's folder


def read_options(data: DataConfig) -> ReadOptions:
    """How the picture files of a configuration are read."""
    return ReadOptions(value_range=data.value_range, max_pixels=data.max_pixels)


def training_transform(data: DataConfig) -> SegmentationTransform:
    """The augmentation of a configuration."""
    return train_transform(
        data.crop,
        scale=data.scale,
        rotate=data.rotate,
        blur=data.blur,
        flip=data.flip,
        cat_max_ratio=data.cat_max_ratio,
        jitter=data.jitter,
        own=None if data.transform is None else _OwnTransform(data.transform),
        mean=data.mean,
        std=data.std,
    )


class _OwnTransform:
    """The function of data.transform, package.module:function, and a check of what it returns."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self.function: Any = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"data.transform = {name}: write package.module:function, of a module on PYTHONPATH ({error})"
            ) from error
        if not callable(self.function):
            kind = type(self.function).__name__
            raise ConfigError(f"data.transform = {name}: is a {kind}, not a function of (image, label)")

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        pair: Any = self.function(image, label)
        parts: list[Any] = list(pair) if isinstance(pair, (tuple, list)) else [pair]
        fits = len(parts) == 2 and all(isinstance(part, Tensor) and part.dtype == torch.uint8 for part in parts)
        if not fits or parts[0].dim() != 3 or parts[0].shape[0] != 3 or parts[0].shape[1:] != parts[1].shape:
            raise ConfigError(
                f"data.transform = {self.name} returns {', '.join(map(kind_of, parts))}; it must return the image "
                "uint8 [3, H, W] and the label uint8 [H, W]"
            )
        return parts[0], parts[1]


def kind_of(value: object) -> str:
    """A tensor's dtype and shape, another value's type; of a tuple or list, those of its parts."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(kind_of, value))})"
    return type(value).__name__


def open_split(
    data: DataConfig, split: str | None, *, training: bool = False, held_out: Collection[str] = ()
) -> SegmentationDataset:
    """The training or validation images of a configuration, with their transform.

    Args:
        held_out: the images of an automatic split's validation, where a run has written them down.
    """
    if data.root is None:
        raise ConfigError("data.root is not set: say where the data set lies, with --root DIR or data.root=DIR")
    if split is None:
        raise ConfigError("data.val_split = null: this configuration has no validation images; name a split (--split)")
    automatic = data.name in OWN and data.val_fraction > 0
    list_file, key = (data.train_list, "train_list") if training or automatic else (data.val_list, "val_list")
    _check_keys(data, key, list_file)
    own = data.own
    layout = None
    if data.name == "folder":
        assert own is not None  # _check_keys
        layout = Layout(
            data.image_folder, data.label_folder, own.table(), data.image_suffixes, data.label_suffix, splits={}
        )
    if automatic:
        side = {data.train_split: "train", data.val_split: "val"}
        split = side.get(split, split)
    try:
        return open_dataset(
            data.name,
            data.root,
            split,
            transform=training_transform(data) if training else eval_transform(data.mean, data.std),
            list_file=list_file,
            classes=own,
            layout=layout,
            val_fraction=data.val_fraction,
            split_seed=data.split_seed,
            held_out=held_out,
            reading=read_options(data),
        )
    except DatasetError as error:
        if data.name == "list":
            raise DatasetError(f"data.{key}: {error}") from error
        raise
    except ValueError as error:  # an argument, not the files
        raise ConfigError(f"data: {error}") from error


def require_labels(info: DatasetInfo, split: str, images: int, labelled: int) -> None:
    """Raise :class:`ConfigError` if a split has no labelled pixel."""
    if labelled == 0:
        raise ConfigError(
            f"{info.name}, split {split!r}: none of the {images} images has a labelled pixel (all are 255, or "
            "there are no label files); choose another split, or correct the labels"
        )


def write_split(folder: Path, data: DataConfig, train: SegmentationDataset, val: SegmentationDataset) -> None:
    """Record which images an automatic split holds out, in the run's folder; `read_split` reads them."""
    root = Path(str(data.root)).expanduser()
    names = {
        "seed": data.split_seed,
        "val": sample_names(val.samples, root),
        "train": sample_names(train.samples, root),
    }
    with replacing(folder / WRITTEN_SPLIT) as file:
        yaml.safe_dump(names, file, sort_keys=False, allow_unicode=True)


def read_split(folder: Path) -> list[str]:
    """The images that the run in the folder holds out, as it wrote them down; none where it did not."""
    path = folder / WRITTEN_SPLIT
    try:
        return list(map(str, yaml.safe_load(path.read_text(encoding="utf-8"))["val"])) if path.is_file() else []
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not the split that a run wrote ({error}); restore it, or remove it") from error


_OWNERS = {
    **dict.fromkeys(("labels", "values", "ignore_value", "reduce_zero_label", "unknown_labels", "val_fraction"), OWN),
    **dict.fromkeys(("image_folder", "label_folder", "image_suffixes", "label_suffix"), ("folder",)),
}
"""The data sets that read an option; others must leave it at its default."""


def _check_keys(data: DataConfig, key: str, list_file: str | None) -> None:
    """Raise ConfigError for keys of one's own data that are missing, or that belong to another data set."""
    defaults = DataConfig()
    for name, owners in {key: ("list",), "classes": OWN, **_OWNERS}.items():
        value = list_file if name == key else getattr(data, name)
        if data.name in owners and value is None and name in (key, "classes"):
            instead = ", data.val_fraction, or data.val_split=null for no validation" if name == "val_list" else ""
            raise ConfigError(f"data.{name} is not set: data.name={data.name} needs data.{name}{instead}")
        if data.name not in owners and value != getattr(defaults, name):
            raise ConfigError(
                f"data.{name} = {value} is for data.name={' or '.join(owners)}, not for {data.name}: remove one of them"
            )
    if data.name == "folder" and "{split}" in data.image_folder and data.val_fraction:
        raise ConfigError(
            f"data.image_folder = {data.image_folder} has splits, and data.val_fraction makes another: remove "
            "{split} from data.image_folder and data.label_folder, or set data.val_fraction=0"
        )
