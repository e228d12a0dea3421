"""ImageNet weights that torchvision and timm publish, for the backbones that have them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

IMAGENET = "imagenet"
"""In the place of a file: the published weights of the backbone."""

# The stem of timm's ResNet-s: conv1 is a sequence, of semseg's names conv1, bn1, conv2, bn2, conv3, with bn1 for bn3.
_DEEP_STEM = {
    "conv1.0": "conv1",
    "conv1.1": "bn1",
    "conv1.3": "conv2",
    "conv1.4": "bn2",
    "conv1.6": "conv3",
    "bn1": "bn3",
}


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
        return {_renamed(key): value for key, value in state.items()}, source
    library, slash, model = backbone.partition("/")
    if library != "timm" and _is_torchvisions(model if slash else backbone):
        return _from_torchvision(model if slash else backbone)
    return _from_timm(model if slash else backbone)


def _is_torchvisions(name: str) -> bool:
    import torchvision.models.resnet

    return hasattr(torchvision.models.resnet, name)


def _from_torchvision(name: str) -> tuple[dict[str, Tensor], str]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        raise OSError(f"{weights.url} cannot be fetched ({error}); put the file at {place} (TORCH_HOME)") from error
    return dict(state), f"torchvision's {weights}"


def _from_timm(name: str) -> tuple[dict[str, Tensor], str]:
    import timm

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


def _renamed(key: str) -> str:
    """timm's names of the deep stem in semseg's."""
    return next(
        (key.replace(theirs, own, 1) for theirs, own in _DEEP_STEM.items() if key.startswith(f"{theirs}.")), key
    )
