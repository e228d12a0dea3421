"""Backbones of torchvision and timm at output stride 8, by name."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from types import ModuleType
from typing import Any

from torch import nn

from .norm import Norm, make_norm
from .resnet import Stages

OUTPUT_STRIDE = 8


def external_stages(name: str, norm: Norm = "batch") -> Stages:
    """The stages of a torchvision or timm model, without weights.

    ``name`` is a bare model name, looked up in torchvision's ResNets first and in timm next, or says which one with the
    prefix "torchvision/" or "timm/".

    - torchvision (resnet50/101/152, resnext…, wide_resnet…): ``layer0`` (the 7x7 stem) to ``layer4``, with
      ``replace_stride_with_dilation``; the first block of a dilated stage keeps the rate of the stage before.
    - timm (every model with ``features_only`` and ``output_stride=8``): one module ``backbone`` that returns the last
      two maps. It keeps its own normalisation layers; ``norm`` is for the pyramid and the heads.

    Raises:
        ValueError: the name is unknown, or the model has no maps at output stride 8.
        ImportError: the library is not installed.
    """
    library, slash, model = name.partition("/")
    if not slash:
        return _bare_name(name, norm)
    if library == "torchvision":
        return _torchvision_stages(model, norm)
    if library == "timm":
        return _timm_stages(model)
    raise ValueError(f"backbone={name!r}: the prefix must be 'torchvision/' or 'timm/'")


def _bare_name(name: str, norm: Norm) -> Stages:
    try:
        return _torchvision_stages(name, norm)
    except ValueError as error:
        problem = error
    try:
        return _timm_stages(name)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"backbone={name!r} can be built neither by torchvision nor by timm.\ntorchvision: {problem}\ntimm: {error}"
        ) from error


def _torchvision_stages(name: str, norm: Norm) -> Stages:
    resnet: Any = _import("torchvision.models.resnet", remedy="pip install torchvision")
    builder = getattr(resnet, name, None)
    if not inspect.isfunction(builder) or "weights" not in inspect.signature(builder).parameters:
        raise ValueError(f"{name!r} is not one of torchvision's ResNets")
    try:
        net = builder(
            weights=None,
            replace_stride_with_dilation=[False, True, True],
            norm_layer=functools.partial(make_norm, norm),
        )
    except NotImplementedError as error:
        raise ValueError(
            f"torchvision's {name} cannot reach output stride {OUTPUT_STRIDE}: {error}. "
            f"Use 'timm/{name}', or layers=18 or 34."
        ) from error

    modules: dict[str, nn.Module] = {"layer0": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)}
    modules |= {f"layer{i}": getattr(net, f"layer{i}") for i in (1, 2, 3, 4)}
    channels: int = net.fc.in_features
    return Stages(modules, stage3_channels=channels // 2, stage4_channels=channels)


def _timm_stages(name: str) -> Stages:
    timm = _import("timm", remedy="pip install timm")
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models()))
        raise ValueError(f"{name!r} is not a model of timm {timm.__version__}" + (f"; near: {near}" if near else ""))
    try:
        # timm raises whatever the model's constructor happens to raise on an argument it does not know.
        net = timm.create_model(
            name, pretrained=False, features_only=True, output_stride=OUTPUT_STRIDE, out_indices=(-2, -1)
        )
        strides, channels = net.feature_info.reduction(), net.feature_info.channels()
    except (TypeError, AssertionError, RuntimeError, NotImplementedError, ValueError, KeyError) as error:
        raise ValueError(
            f"timm's {name} offers no feature maps at output stride {OUTPUT_STRIDE} ({type(error).__name__}: {error}). "
            "Convolutional models such as resnet50d, regnetx_032, efficientnet_b0 or convnext_tiny do."
        ) from error
    if strides != [OUTPUT_STRIDE, OUTPUT_STRIDE]:
        raise ValueError(f"the last two maps of timm's {name} are at strides {strides}, not {OUTPUT_STRIDE}")
    return Stages({"backbone": net}, stage3_channels=channels[0], stage4_channels=channels[1])


def _import(name: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name.partition('.')[0]} is not installed ({error}): {remedy}") from error
