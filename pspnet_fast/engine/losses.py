"""The loss of a configuration."""

from __future__ import annotations

from torch import Tensor, nn

from pspnet_fast.nn import DualCrossEntropyLoss, FocalLoss, LowResolutionLoss, OhemCrossEntropyLoss, WithDice

from .config import OptimConfig


def build_loss(options: OptimConfig, ignore_index: int, class_weights: Tensor | None) -> nn.Module:
    """The criterion for :class:`pspnet_fast.PSPNet`: ``optim.loss`` and ``optim.dice``, all of low-resolution logits.

    Class weights are no entry of its ``state_dict``: they belong to the data, not to the network.
    """
    kind, smoothing = options.loss, options.label_smoothing
    criterion: nn.Module
    if kind.name == "ohem":
        criterion = OhemCrossEntropyLoss(
            threshold=kind.threshold,
            min_kept=kind.min_kept,
            share=kind.share,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
        )
    elif kind.name == "focal":
        criterion = FocalLoss(gamma=kind.gamma, ignore_index=ignore_index)
    elif options.dice:
        criterion = DualCrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing)
    else:
        criterion = nn.CrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing)
    if class_weights is not None:
        criterion.register_buffer("weight", class_weights.float(), persistent=False)
    if not options.dice:
        return criterion
    assert isinstance(criterion, LowResolutionLoss)
    return WithDice(criterion, options.dice, ignore_index=ignore_index)
