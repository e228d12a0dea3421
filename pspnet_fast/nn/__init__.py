"""The network: PSPNet, its parts, and loading of weights."""

from .heads import AuxHead, PSPHead, PyramidPooling
from .loss import DualCrossEntropyLoss, FocalLoss, LowResolutionLoss, OhemCrossEntropyLoss, WithDice, dice_loss
from .pspnet import PSPNet
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
