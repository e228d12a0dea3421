"""The loss of PSPNet: L = L_main + λ·L_aux, both pixel-wise cross-entropies (Zhao et al. 2017, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor, nn

from pspnet_fast.ops.checks import LABEL_DTYPES
from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy
from pspnet_fast.reference import DEFAULT_AUX_WEIGHT, DualLoss

from .fusibility import changed_reason


class CrossEntropyOptions(TypedDict):
    """The arguments of ``nn.CrossEntropyLoss``, as the fused cross-entropies take them."""

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str


class LowResolutionLoss(nn.Module):
    """A criterion ``(main logits, aux logits, target) -> DualLoss`` that upsamples the logits itself.

    PSPNet gives a criterion of this type its low-resolution logits; any other is called on upsampled ones.

    Args:
        aux_weight: λ, the weight of the auxiliary loss in the total; None for DEFAULT_AUX_WEIGHT. PSPNet returns both
            losses unweighted, for its caller to weigh, and refuses a criterion that has a λ of its own.
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
    """Cross-entropy of both heads from their low-resolution logits, without ever building full-resolution logits.

    Args:
        aux_weight: λ, the weight of the auxiliary loss in the total, 0.4 where None; not for PSPNet, which returns the
            losses unweighted.
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
        return dual_cross_entropy(
            main,
            aux,
            target,
            aux_weight=self.total_weight,
            weight=self.weight,
            pixel_weight=pixel_weight,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value!r}" for name, value in {"aux_weight": self.total_weight, **self.options}.items()
        )


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


def check_criterion(criterion: object) -> None:
    """Raise ValueError if ``criterion`` has a weight of the auxiliary loss, which PSPNet would not apply."""
    if isinstance(criterion, LowResolutionLoss) and criterion.aux_weight is not None:
        raise ValueError(
            f"criterion has aux_weight={criterion.aux_weight}, but PSPNet returns the main and the auxiliary loss "
            f"unweighted; leave aux_weight out and train on main_loss + {criterion.aux_weight} * aux_loss"
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
