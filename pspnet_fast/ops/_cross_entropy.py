"""What both cross-entropy operators share: their options, the reduction, and a composition of PyTorch operators.

The operators themselves only sum: ``total`` (or a loss per pixel), ``divisor`` (what PyTorch's mean divides by) and,
for their own backward, ``lse``, every pixel's log-sum-exp (a kernel may take it relative to something of its choice).
Which mean is taken of that is decided here, on 0-d tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.ops._checks import check_choice, same_device
from pspnet_fast.ops._interpolation import upsample_adjoint


class Options(NamedTuple):
    """The options of the operators, in the order of their schemas."""

    weight: Tensor | None
    pixel_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    per_pixel: bool
    align_corners: bool

    def as_keywords(self) -> dict[str, object]:
        """As keyword arguments of the reference, for the unreduced operator."""
        keywords: dict[str, object] = self._asdict()
        keywords["reduction"] = "none" if keywords.pop("per_pixel") else "sum"
        return keywords


OPTION_COUNT = len(Options._fields)


class Reduction(NamedTuple):
    """How the sums become the loss."""

    kind: str
    denominator: str | float
    empty: str

    def __call__(self, total: Tensor, divisor: Tensor, target: Tensor) -> Tensor:
        """The loss of an operator's sums."""
        if self.kind != "mean":
            return total
        if not isinstance(self.denominator, str):
            return total / self.denominator
        if self.denominator == "all":
            divisor = total.new_full((), target.numel())
        return reference.divide_or_empty(total, divisor.detach(), self.empty)


def check_options(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    denominator: str | float,
    empty: str,
    align_corners: bool,
    pixel_weight: Tensor | None,
) -> tuple[Options, Reduction]:
    """Validate the public options (see :func:`pspnet_fast.upsample_cross_entropy`) and pack them."""
    check_choice("reduction", reduction, ("none", "sum", "mean"))
    check_choice("empty", empty, ("nan", "zero"))
    if isinstance(denominator, str):
        check_choice("denominator", denominator, ("valid", "all"))
    elif not denominator > 0:
        raise ValueError(f"denominator must be 'valid', 'all' or a positive number, not {denominator!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing!r}")
    if weight is not None:
        if weight.shape != logits.shape[1:2]:
            raise ValueError(f"weight must be [{logits.shape[1]}], one per class, not {tuple(weight.shape)}")
        _not_differentiable("weight", weight)
        same_device("weight", weight, "logits", logits)
    if pixel_weight is not None:
        if pixel_weight.shape != target.shape:
            raise ValueError(f"pixel_weight must be {tuple(target.shape)}, as target, not {tuple(pixel_weight.shape)}")
        _not_differentiable("pixel_weight", pixel_weight)
        same_device("pixel_weight", pixel_weight, "logits", logits)
    options = Options(weight, pixel_weight, ignore_index, label_smoothing, reduction == "none", align_corners)
    return options, Reduction(reduction, denominator, empty)


def _not_differentiable(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but the loss is not differentiable by it; pass {name}.detach()")


def loss_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def compose_forward(logits: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """``(total, divisor, lse)`` of one head by PyTorch operators, for devices without a kernel."""
    up = F.interpolate(
        reference.accumulation(logits), target.shape[1:], mode="bilinear", align_corners=options.align_corners
    )
    labels = target.long()
    weight = None if options.weight is None else options.weight.to(up.dtype)
    total = reference.cross_entropy(
        up,
        labels,
        weight,
        options.ignore_index,
        options.label_smoothing,
        "none" if options.per_pixel else "sum",
        "valid",
        "nan",
        options.pixel_weight,
    )
    divisor = reference.loss_divisor(labels, weight, options.pixel_weight, options.ignore_index, "valid", up.dtype)
    return total, divisor, up.logsumexp(dim=1)


def compose_backward(grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, options: Options) -> Tensor:
    """The gradient of :func:`compose_forward`'s total with respect to the low-resolution logits."""
    labels = target.long()
    valid = labels != options.ignore_index
    labels = labels.where(valid, 0)
    up = F.interpolate(
        reference.accumulation(logits), target.shape[1:], mode="bilinear", align_corners=options.align_corners
    )
    dense = (up - lse.unsqueeze(1)).exp_()

    classes, smoothing = up.shape[1], options.label_smoothing
    scale = grad * valid.to(up.dtype)
    if options.pixel_weight is not None:
        scale = scale * options.pixel_weight.to(up.dtype)
    one_hot_share = scale * (1 - smoothing)
    if options.weight is not None:
        one_hot_share = one_hot_share * options.weight.to(up.dtype)[labels]
    if smoothing == 0:
        dense *= one_hot_share.unsqueeze(1)
    else:
        class_weight = up.new_ones(classes) if options.weight is None else options.weight.to(up.dtype)
        share = class_weight * (smoothing / classes)
        dense *= (one_hot_share + share.sum() * scale).unsqueeze(1)
        dense -= share.view(1, -1, 1, 1) * scale.unsqueeze(1)

    # Not scatter_add_, whose atomics torch.use_deterministic_algorithms refuses: each index occurs once.
    index = labels.unsqueeze(1)
    dense.scatter_(1, index, dense.gather(1, index) - one_hot_share.unsqueeze(1))
    result = empty_gradient(logits)
    result.copy_(upsample_adjoint(dense, logits.shape[2], logits.shape[3], options.align_corners))
    return result


def empty_gradient(logits: Tensor) -> Tensor:
    """An empty gradient of ``logits``: in their layout if that is NCHW or channels_last, else in NCHW."""
    dense = logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(logits, memory_format=torch.preserve_format if dense else torch.contiguous_format)


def fake_forward(logits: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors shaped as ``(total, divisor, lse)``."""
    dtype = loss_dtype(logits)
    total = logits.new_empty(target.shape if options.per_pixel else (), dtype=dtype)
    return total, logits.new_empty((), dtype=dtype), logits.new_empty(target.shape, dtype=dtype)
