"""Online hard example mining (Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540) for segmentation.

Only the pixels that the network finds hard are learned from. They are chosen from the loss map, without gradient, and
weighted 1, the others 0: two passes of the fused cross-entropy, and no full-resolution logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pspnet_fast.ops.upsample_cross_entropy import upsample_cross_entropy
from pspnet_fast.reference import DualLoss

from .loss import LowResolutionLoss


class OhemCrossEntropyLoss(LowResolutionLoss):
    """Mean cross-entropy of both heads over their hard pixels, each head's own.

    A pixel's hardness is its cross-entropy -log p, where p is the probability of its label.

    - By threshold (the default): hard are the pixels with p < ``threshold``, and at least the ``min_kept`` hardest ones
      per image of the batch.
    - By share: hard is the ``share`` hardest of the labelled pixels of the batch, rounded up.

    Where pixels tie at the border, all of them are kept.

    Args:
        aux_weight: λ, the weight of the auxiliary loss in the total, 0.4 where None; not for PSPNet, which returns the
            losses unweighted.
        threshold: in (0, 1].
        min_kept: pixels per image, at least 1.
        share: in (0, 1]; in the place of ``threshold`` and ``min_kept``.
        weight: [C], the weights of the classes; moves with the module. They weigh in the mean, not in the choice.
        ignore_index: the label that is left out.
        label_smoothing: in [0, 1]; in the mean, not in the choice.
        align_corners: how the logits are upsampled.

    Raises:
        ValueError: an argument out of its range.
    """

    weight: Tensor | None

    def __init__(
        self,
        aux_weight: float | None = None,
        *,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        share: float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
        align_corners: bool = True,
    ) -> None:
        super().__init__(aux_weight)
        for name, value in (("threshold", threshold), ("share", 1.0 if share is None else share)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {value!r}")
        if min_kept < 1:
            raise ValueError(f"min_kept must be at least 1 pixel per image, not {min_kept!r}")
        self.register_buffer("weight", weight)
        self.threshold = threshold
        self.min_kept = min_kept
        self.share = share
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.align_corners = align_corners

    def forward(self, main: Tensor, aux: Tensor, target: Tensor) -> DualLoss:
        """``(loss, main, aux)`` of logits ``main`` and ``aux`` [B, C, h, w] against labels ``target`` [B, H, W].

        Labels are int64, int32 or uint8. Where nothing is labelled, the losses are NaN with zero gradient.
        """
        return self.weigh(*(self._one_head(logits, target) for logits in (main, aux)))

    def hard_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """The pixels that are learned from, bool [B, H, W]."""
        with torch.no_grad():
            loss = upsample_cross_entropy(
                logits, target, ignore_index=self.ignore_index, reduction="none", align_corners=self.align_corners
            )
        valid = target.long() != self.ignore_index  # a uint8 would wrap a number that it cannot hold
        if valid.numel() == 0:
            return valid
        # Ignored pixels, at 0 like the easiest, sort behind every other one.
        hardest = loss.where(valid, -1).flatten().sort(descending=True).values
        if self.share is not None:
            count = (self.share * valid.sum()).ceil().long()
            return valid & (loss >= hardest[(count - 1).clamp(min=0)])
        border = hardest[min(self.min_kept * target.shape[0], hardest.numel()) - 1]
        return valid & ((loss > -math.log(self.threshold)) | (loss >= border))

    def _one_head(self, logits: Tensor, target: Tensor) -> Tensor:
        return upsample_cross_entropy(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
            pixel_weight=self.hard_pixels(logits, target),
        )

    def extra_repr(self) -> str:
        choice = f"threshold={self.threshold}, min_kept={self.min_kept}"
        return f"aux_weight={self.total_weight}, " + (choice if self.share is None else f"share={self.share}")
