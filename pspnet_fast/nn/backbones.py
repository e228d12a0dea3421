"""Backbones of torchvision and timm at output stride 8, by name, and their published ImageNet weights."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .resnet import Norm, Stages, make_norm

OUTPUT_STRIDE = 8

IMAGENET = "imagenet"
"""In the place of a file: the published weights of the backbone."""


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
    builder = getattr(_import("torchvision.models.resnet"), name, None)
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
    timm = _import("timm")
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


def published_weights(layers: int, backbone: str | None) -> tuple[dict[str, Tensor], str]:
    """The state dict of an ImageNet classifier with the PSPNet's backbone, and what it is.

    - the deep-stem ResNet of 50, 101 and 152 layers: GluonCV's ResNet-s, from timm.
    - torchvision's ResNets: the newest of torchvision's weights.
    - timm's models: the weights that timm names first.

    They are downloaded once, into TORCH_HOME or HF_HOME.

    Raises:
        ValueError: the backbone has no published weights.
        OSError: they are neither there nor can be downloaded; the message says where the file belongs.
        ImportError: the library is not installed.
    """
    if backbone is None:
        if layers < 50:
            raise ValueError(
                f"none are published for the deep-stem ResNet of {layers} layers; take backbone=timm/resnet{layers}"
            )
        state, source = _from_timm(f"resnet{layers}s.gluon_in1k")
        # timm's stem is a sequence "conv1" of the same modules but for the last normalisation.
        places = {"conv1": "layer0", "bn1": "layer0.7"}
        parts = [key.partition(".") for key in state]
        keys = [f"{places.get(head, head)}.{rest}" for head, _, rest in parts]
        return dict(zip(keys, state.values(), strict=True)), source
    library, slash, model = backbone.partition("/")
    name = model if slash else backbone
    if library != "timm" and hasattr(_import("torchvision.models.resnet"), name):
        return _from_torchvision(name)
    return _from_timm(name)


def _from_torchvision(name: str) -> tuple[dict[str, Tensor], str]:
    weights = _import("torchvision.models").get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        raise OSError(f"{weights.url} cannot be fetched ({error}); put the file at {place} (TORCH_HOME)") from error
    return dict(state), f"torchvision's {weights}"


def _from_timm(name: str) -> tuple[dict[str, Tensor], str]:
    timm = _import("timm")
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"timm publishes no weights for {name}; give a file")
    repository = config.hf_hub_id or config.url
    try:
        net = timm.create_model(name, pretrained=True)
    # huggingface_hub and urllib raise many kinds of errors where there is no connection, and no common one.
    except Exception as error:
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise OSError(
            f"{repository} cannot be fetched ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}); "
            f"where there is a connection run `hf download {repository}`, and copy its {home}/hub to {home}/hub here "
            "(HF_HOME); or give the file itself in the place of 'imagenet'"
        ) from error
    return net.state_dict(), f"timm's {config.hf_hub_id or name}"


def _import(name: str) -> Any:
    library = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{library} is not installed ({error}): pip install {library}") from error
