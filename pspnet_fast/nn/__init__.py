"""The network: PSPNet, its parts, and loading of weights."""

from .focal import FocalLoss, WithDice, dice_loss
from .heads import AuxHead, PSPHead
from .loss import DualCrossEntropyLoss, LowResolutionLoss
from .ohem import OhemCrossEntropyLoss
from .pspnet import PSPNet
from .pyramid import PyramidPooling
from .weights import LoadReport, load_checkpoint_weights, load_imagenet_resnet

__all__ = [
    "AuxHead",
    "DualCrossEntropyLoss",
    "FocalLoss",
    "LoadReport",
    "LowResolutionLoss",
    "OhemCrossEntropyLoss",
    "PSPHead",
    "PSPNet",
    "PyramidPooling",
    "WithDice",
    "dice_loss",
    "load_checkpoint_weights",
    "load_imagenet_resnet",
]
