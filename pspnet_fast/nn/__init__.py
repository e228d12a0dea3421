"""The network: PSPNet, its parts, and loading of weights."""

from .heads import AuxHead, PSPHead
from .loss import DualCrossEntropyLoss, LowResolutionLoss
from .ohem import OhemCrossEntropyLoss
from .pspnet import PSPNet
from .pyramid import PyramidPooling
from .weights import LoadReport, load_checkpoint_weights, load_imagenet_resnet

__all__ = [
    "AuxHead",
    "DualCrossEntropyLoss",
    "LoadReport",
    "LowResolutionLoss",
    "OhemCrossEntropyLoss",
    "PSPHead",
    "PSPNet",
    "PyramidPooling",
    "load_checkpoint_weights",
    "load_imagenet_resnet",
]
