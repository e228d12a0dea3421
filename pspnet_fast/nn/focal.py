"""Focal loss and Dice, both from low-resolution logits."""

from __future__ import annotations

import torch
from torch import Tensor

from pspnet_fast.ops.upsample_cross_entropy import upsample_cross_entropy
from pspnet_fast.reference import DualLoss

from .loss import LowResolutionLoss

_SMALLEST = 1e-6  # of 1 - p, whose powers below 1 have no derivative at 0


class FocalLoss(LowResolutionLoss):
    """Mean of ``(1 - p) ** gamma * -log p`` over the labelled pixels of each head (Lin et al. 2017, softmax form).

    p is the probability of the label at the label's resolution. The cross-entropy of each pixel comes from the fused
    operator, so that full-resolution logits are never built.

    Args:
        aux_weight: λ, the weight of the auxiliary loss in the total, 0.4 where None; not for PSPNet.
        gamma: at least 0, which is the plain cross-entropy.
        weight: [C], the weights of the classes (alpha); moves with the module. The mean divides by their sum.
        ignore_index: the label that is left out.
        align_corners: how the logits are upsampled.

    Raises:
        ValueError: a negative gamma.
    """

    weight: Tensor | None

    def __init__(
        self,
        aux_weight: float | None = None,
        *,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        align_corners: bool = True,
    ) -> None:
        super().__init__(aux_weight)
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, not {gamma!r}")
        self.register_buffer("weight", weight)
        self.gamma, self.ignore_index, self.align_corners = gamma, ignore_index, align_corners

    def forward(self, main: Tensor, aux: Tensor, target: Tensor) -> DualLoss:
        """``(loss, main, aux)`` of logits ``main`` and ``aux`` [B, C, h, w] against labels ``target`` [B, H, W].

        Labels are int64, int32 or uint8. Where nothing is labelled, the losses are NaN.
        """
        return self.weigh(*(self._one_head(logits, target) for logits in (main, aux)))

    def _one_head(self, logits: Tensor, target: Tensor) -> Tensor:
        nll = upsample_cross_entropy(
            logits, target, ignore_index=self.ignore_index, reduction="none", align_corners=self.align_corners
        )
        valid = target.long() != self.ignore_index
        share = valid.to(nll.dtype)
        if self.weight is not None:
            share = share * self.weight.to(nll.dtype)[target.long().where(valid, 0)]
        missed = (-torch.expm1(-nll)).clamp(min=_SMALLEST)  # 1 - p
        return (missed**self.gamma * nll * share).sum() / share.sum()

    def extra_repr(self) -> str:
        return f"aux_weight={self.total_weight}, gamma={self.gamma}"


class WithDice(LowResolutionLoss):
    """Another loss of low-resolution logits, plus ``dice_weight`` times each head's :func:`dice_loss`.

    Args:
        loss: without ``aux_weight``.
        dice_weight: at least 0.
        ignore_index: the label that is left out.
    """

    def __init__(self, loss: LowResolutionLoss, dice_weight: float, *, ignore_index: int = 255) -> None:
        super().__init__(loss.aux_weight)
        self.loss, self.dice_weight, self.ignore_index = loss, dice_weight, ignore_index

    def forward(self, main: Tensor, aux: Tensor, target: Tensor) -> DualLoss:
        """As the inner loss."""
        inner = self.loss(main, aux, target)
        dice = [dice_loss(logits, target, ignore_index=self.ignore_index) for logits in (main, aux)]
        return self.weigh(inner.main + self.dice_weight * dice[0], inner.aux + self.dice_weight * dice[1])

    def extra_repr(self) -> str:
        return f"dice_weight={self.dice_weight}"


def dice_loss(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """1 - mean Dice coefficient of the classes that ``target`` has (Milletari et al. 2016); 0 where it has none.

    Each label pixel is compared with the probabilities of the nearest logit (align_corners=True), so that no map of
    all classes at full resolution is built. The sums of all images of the batch make one coefficient a class.

    Args:
        logits: [B, C, h, w].
        target: [B, H, W], int64, int32 or uint8.
    """
    batch, classes, height, width = logits.shape
    rows, columns = (
        torch.linspace(0, low - 1, high, device=target.device, dtype=torch.float64).round().long()
        for low, high in ((height, target.shape[1]), (width, target.shape[2]))
    )
    nodes = rows[:, None] * width + columns
    valid = target.long() != ignore_index
    # Pixels of each class and node, counted in float32: sums of ones are exact in any order up to 2^24.
    counts = torch.zeros(batch, classes * height * width, device=logits.device)
    places = target.long().where(valid, 0) * (height * width) + nodes
    counts.scatter_add_(1, places.flatten(1), valid.flatten(1).float())
    counts = counts.view(batch, classes, height, width)

    p = logits.float().softmax(1)
    hits = (p * counts).sum((0, 2, 3))
    predicted = (p * counts.sum(1, keepdim=True)).sum((0, 2, 3))
    labelled = counts.sum((0, 2, 3))
    present = labelled > 0
    coefficients = 2 * hits / (predicted + labelled).where(present, 1)
    return ((1 - coefficients) * present).sum() / present.sum().clamp(min=1)
