"""The options of the cross-entropies: what their kernels take, and what becomes of the sums that these give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LossOptions(NamedTuple):
    """What every kernel takes, in the order of ``schemas.txt``; csrc/loss_options.h has the same.

    Attributes:
        weight: ``[C]``, a factor per class, or None.
        pixel_weight: ``[B, H, W]``, a factor per pixel, or None.
        ignore_index: the label of pixels that are left out.
        label_smoothing: in [0, 1].
        align_corners: of the upsampling.
    """

    weight: Tensor | None = None
    pixel_weight: Tensor | None = None
    ignore_index: int = 255
    label_smoothing: float = 0.0
    align_corners: bool = True

    def class_weight(self, dtype: torch.dtype) -> Tensor | None:
        """``weight`` in ``dtype``."""
        return None if self.weight is None else self.weight.to(dtype)


class Reduction(NamedTuple):
    """How losses become the result: the same for every back end.

    Attributes:
        how: "none", "sum" or "mean".
        denominator: of the mean: "valid" (the divisor that kernels give), "all" (the number of pixels), or a number.
        empty: the mean where the divisor is zero: "nan" or "zero", with zero gradient either way.
    """

    how: str = "mean"
    denominator: str | float = "valid"
    empty: str = "nan"

    @property
    def per_pixel(self) -> bool:
        """Whether the kernels give a loss per pixel instead of the sum."""
        return self.how == "none"

    def apply(self, losses: Sequence[Tensor], divisor: Tensor, target: Tensor) -> list[Tensor]:
        """The results of heads' ``losses``: maps, or 0-d sums, whose ``"valid"`` divisor is ``divisor``."""
        if self.how != "mean":
            return list(losses)
        if self.denominator == "all":
            divisor = torch.full_like(divisor, target.numel())
        elif not isinstance(self.denominator, str):
            return [loss / self.denominator for loss in losses]
        # Each operator is a launch on a GPU, and another one in backward unless it is an addition.
        safe = divisor.masked_fill(divisor == 0, torch.inf)  # loss and gradient are 0 then
        means = [loss / safe for loss in losses]
        if self.empty == "zero":
            return means
        offset = divisor.fmod(divisor)  # 0, and NaN for 0
        return [mean + offset for mean in means]
