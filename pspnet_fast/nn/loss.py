"""The losses of PSPNet from low-resolution logits: L = L_main + λ·L_aux (Zhao et al. 2017, section 3.3).

Full-resolution logits are never built.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy
from pspnet_fast.ops.upsample_cross_entropy import upsample_cross_entropy
from pspnet_fast.reference import DEFAULT_AUX_WEIGHT, DualLoss

_SMALLEST = 1e-6  # of 1 - p, whose powers below 1 have no derivative at 0


class LowResolutionLoss(nn.Module):
    """A criterion ``(main logits, aux logits, target) -> DualLoss`` that upsamples the logits itself.

    PSPNet gives a criterion of this type its low-resolution logits; any other is called on upsampled ones.

    Args:
        aux_weight: λ, the weight of the auxiliary loss in the total; None for DEFAULT_AUX_WEIGHT, 0.4. PSPNet returns
            both losses unweighted, for its caller to weigh, and refuses a criterion that has a λ of its own.
    """

    def __init__(self, aux_weight: float | None = None) -> None:
        super().__init__()
        self.aux_weight = aux_weight

    def weigh(self, main: Tensor, aux: Tensor) -> DualLoss:
        """``DualLoss`` of both heads' losses."""
        return DualLoss(main + self.total_weight * aux, main, aux)

    @property
    def total_weight(self) -> float:
        """λ as a number."""
        return DEFAULT_AUX_WEIGHT if self.aux_weight is None else self.aux_weight


class DualCrossEntropyLoss(LowResolutionLoss):
    """Cross-entropy of both heads.

    Args:
        aux_weight: as of :class:`LowResolutionLoss`.
        weight: [C], the weights of the classes; moves with the module.
        ignore_index, label_smoothing, reduction, denominator, empty, align_corners: as in
            :func:`pspnet_fast.upsample_cross_entropy`.
    """

    weight: Tensor | None

    def __init__(
        self,
        aux_weight: float | None = None,
        *,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        denominator: str | float = "valid",
        empty: str = "nan",
        align_corners: bool = True,
    ) -> None:
        super().__init__(aux_weight)
        self.register_buffer("weight", weight)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
            "denominator": denominator,
            "empty": empty,
            "align_corners": align_corners,
        }

    def forward(self, main: Tensor, aux: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> DualLoss:
        """``(loss, main, aux)`` of logits ``main`` and ``aux`` [B, C, h, w] against labels ``target`` [B, H, W].

        Labels are int64, int32 or uint8; ``pixel_weight`` is [B, H, W].
        """
        options = {"aux_weight": self.total_weight, "weight": self.weight, **self.options}
        return dual_cross_entropy(main, aux, target, pixel_weight=pixel_weight, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={value!r}" for k, value in {"aux_weight": self.total_weight, **self.options}.items())


class _LossOfEachHead(LowResolutionLoss):
    """A loss that is made of the cross-entropies of a head's pixels."""

    weight: Tensor | None

    def __init__(self, aux_weight: float | None, weight: Tensor | None, ignore_index: int, align_corners: bool) -> None:
        super().__init__(aux_weight)
        self.register_buffer("weight", weight)
        self.ignore_index, self.align_corners = ignore_index, align_corners

    def forward(self, main: Tensor, aux: Tensor, target: Tensor) -> DualLoss:
        """``(loss, main, aux)`` of logits ``main`` and ``aux`` [B, C, h, w] against labels ``target`` [B, H, W].

        Labels are int64, int32 or uint8. Where nothing is labelled, the losses are NaN.
        """
        return self.weigh(*(self._one_head(logits, target) for logits in (main, aux)))

    def _one_head(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _pixels(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, H, W]``: the cross-entropy of every pixel, and whether it has a label."""
        nll = upsample_cross_entropy(
            logits, target, ignore_index=self.ignore_index, reduction="none", align_corners=self.align_corners
        )
        return nll, target.long() != self.ignore_index  # a uint8 would wrap a number that it cannot hold


class OhemCrossEntropyLoss(_LossOfEachHead):
    """Mean cross-entropy of both heads over their hard pixels, each head's own: online hard example mining.

    Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540. They are chosen from the loss map, without gradient, and
    weighted 1, the others 0. A pixel's hardness is its cross-entropy -log p, where p is the probability of its label.

    - By threshold (the default): hard are the pixels with p < ``threshold``, and at least the ``min_kept`` hardest ones
      per image of the batch.
    - By share: hard is the ``share`` hardest of the labelled pixels of the batch, rounded up.

    Where pixels tie at the border, all of them are kept. Where nothing is labelled, the gradient is zero.

    Args:
        aux_weight: as of :class:`LowResolutionLoss`.
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
        super().__init__(aux_weight, weight, ignore_index, align_corners)
        for name, value in (("threshold", threshold), ("share", 1.0 if share is None else share)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {value!r}")
        if min_kept < 1:
            raise ValueError(f"min_kept must be at least 1 pixel per image, not {min_kept!r}")
        self.threshold, self.min_kept, self.share = threshold, min_kept, share
        self.label_smoothing = label_smoothing

    @torch.no_grad()
    def hard_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """The pixels that are learned from, bool [B, H, W]."""
        loss, valid = self._pixels(logits, target)
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


class FocalLoss(_LossOfEachHead):
    """Mean of ``(1 - p) ** gamma * -log p`` over the labelled pixels of each head (Lin et al. 2017, softmax form).

    p is the probability of the label at the label's resolution.

    Args:
        aux_weight: as of :class:`LowResolutionLoss`.
        gamma: at least 0, which is the plain cross-entropy.
        weight: [C], the weights of the classes (alpha); moves with the module. The mean divides by their sum.
        ignore_index: the label that is left out.
        align_corners: how the logits are upsampled.

    Raises:
        ValueError: a negative gamma.
    """

    def __init__(
        self,
        aux_weight: float | None = None,
        *,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        align_corners: bool = True,
    ) -> None:
        super().__init__(aux_weight, weight, ignore_index, align_corners)
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, not {gamma!r}")
        self.gamma = gamma

    def _one_head(self, logits: Tensor, target: Tensor) -> Tensor:
        nll, valid = self._pixels(logits, target)
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
