"""The loss of PSPNet: L = L_main + λ·L_aux, both pixel-wise cross-entropies (Zhao et al. 2017, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor, nn

from pspnet_fast.ops._checks import LABEL_DTYPES
from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy
from pspnet_fast.reference import DualLoss

from .fusion import changed_reason


class CrossEntropyOptions(TypedDict):
    """The arguments of ``nn.CrossEntropyLoss``, as the fused cross-entropies take them."""

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str


class LowResolutionLoss(nn.Module):
    """A criterion ``(main logits, aux logits, target) -> DualLoss`` that upsamples the logits itself.

    PSPNet gives a criterion of this type its low-resolution logits; any other is called on upsampled ones.
    """


class DualCrossEntropyLoss(LowResolutionLoss):
    """Cross-entropy of both heads from their low-resolution logits, without ever building full-resolution logits.

    Args:
        aux_weight: λ, the weight of the auxiliary loss in the total.
        weight: [C], the weights of the classes; moves with the module.
        ignore_index: the label that is left out.
        label_smoothing: in [0, 1].
        reduction: "mean", "sum" or "none" (a loss map).
        denominator: what "mean" divides by: "valid" (weighted number of labelled pixels), "all", or a number.
        empty: the mean where nothing is labelled: "nan" (as PyTorch) or "zero".
        align_corners: how the logits are upsampled.
    """

    weight: Tensor | None

    def __init__(
        self,
        aux_weight: float = 0.4,
        *,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        denominator: str | float = "valid",
        empty: str = "nan",
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.aux_weight = aux_weight
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
        return dual_cross_entropy(
            main, aux, target, aux_weight=self.aux_weight, weight=self.weight, pixel_weight=pixel_weight, **self.options
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in {"aux_weight": self.aux_weight, **self.options}.items())


def fusable_options(criterion: object) -> CrossEntropyOptions | None:
    """The arguments of ``criterion`` if it is an unhooked ``nn.CrossEntropyLoss``, no subclass; else None: call it."""
    if not isinstance(criterion, nn.CrossEntropyLoss) or changed_reason("criterion", criterion, nn.CrossEntropyLoss):
        return None
    return CrossEntropyOptions(
        weight=criterion.weight,
        ignore_index=criterion.ignore_index,
        label_smoothing=criterion.label_smoothing,
        reduction=criterion.reduction,
    )


def check_target(target: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``target`` holds class indices of the given [B, H, W]."""
    if target.dtype not in LABEL_DTYPES:
        raise ValueError(f"labels must be int64, int32 or uint8, not {target.dtype}; convert them with labels.long()")
    if tuple(target.shape) != tuple(shape):
        hint = " (remove the channel axis with labels.squeeze(1))" if target.dim() == 4 else ""
        raise ValueError(
            f"labels must be [N, h, w] = {list(shape)}, the size of the output, not {list(target.shape)}{hint}; "
            "the output is (H - 1) * zoom_factor // 8 + 1 high for an input of height H"
        )
