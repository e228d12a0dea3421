"""What both cross-entropy operators share: their options, the reduction, and a composition of PyTorch operators.

The operators themselves only sum: ``total`` (or a loss per pixel), ``divisor`` (what PyTorch's mean divides by) and,
for their own backward, ``state``. Which mean is taken of that is decided here, on 0-d tensors.

Loss and gradient share nearly all of their work, so a sum whose gradient will be asked for computes it at once:
``state`` is ``d total / d logits``, and backward only scales it. A loss per pixel does not know its upstream gradient
yet; it keeps nothing, and backward is the gradient of the sum whose pixels are weighted by the upstream gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
        # Two operators for autograd to record: total · scale + offset, where nothing is scored total · 0 + NaN (or 0).
        nothing = divisor == 0
        scale = divisor.detach().masked_fill(nothing, torch.inf).reciprocal()
        offset = torch.zeros_like(scale).masked_fill(nothing, torch.nan if self.empty == "nan" else 0.0)
        return torch.addcmul(offset, total, scale)


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


def wants_gradient(*logits: Tensor) -> bool:
    """Whether autograd will record a loss of ``logits``."""
    return torch.is_grad_enabled() and any(z.requires_grad for z in logits)


def compose_forward(logits: Tensor, target: Tensor, gradient: bool, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """``(total, divisor, state)`` of one head by PyTorch operators, for devices without a kernel."""
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
    state = _no_state(logits)
    if gradient and not options.per_pixel:
        state = _gradient_of_sum(total.new_ones(()), up, logits, labels, options)
    return total, divisor, state


def compose_backward(grad: Tensor, logits: Tensor, target: Tensor, state: Tensor, options: Options) -> Tensor:
    """The gradient of :func:`compose_forward`'s total with respect to the low-resolution logits."""
    if options.per_pixel:
        up = F.interpolate(
            reference.accumulation(logits), target.shape[1:], mode="bilinear", align_corners=options.align_corners
        )
        state, grad = _gradient_of_sum(grad, up, logits, target.long(), options), grad.new_ones(())
    return scale_state(grad, logits, state)


def scale_state(grad: Tensor, logits: Tensor, state: Tensor) -> Tensor:
    """Backward of a sum: ``state`` times its upstream gradient, in the dtype of ``logits``."""
    if state.shape != logits.shape:
        raise RuntimeError("the cross-entropy was computed without its gradient: call the operator with gradient=True")
    return torch.mul(state, grad, out=empty_gradient(logits))


def _gradient_of_sum(grad: Tensor, up: Tensor, logits: Tensor, labels: Tensor, options: Options) -> Tensor:
    """The gradient with respect to ``logits`` of the sum of losses, each times ``grad`` (0-d or ``[B, H, W]``)."""
    valid = labels != options.ignore_index
    labels = labels.where(valid, 0)
    dense = up.softmax(dim=1)

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
    result = empty_gradient(logits, loss_dtype(logits))
    result.copy_(upsample_adjoint(dense, logits.shape[2], logits.shape[3], options.align_corners))
    return result


def only_losses_are_differentiable(ctx: Any, outputs: Sequence[Tensor]) -> None:
    """Tell autograd so of an operator's other ``outputs``, which would else get gradients of zeros in full size."""
    ctx.mark_non_differentiable(*outputs)
    ctx.set_materialize_grads(False)


def empty_gradient(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty gradient of ``logits``: in their layout if that is NCHW or channels_last, else in NCHW."""
    dense = logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.preserve_format if dense else torch.contiguous_format
    return torch.empty_like(logits, dtype=dtype, memory_format=memory_format)


def _no_state(logits: Tensor) -> Tensor:
    return logits.new_empty(0, dtype=loss_dtype(logits))


def fake_forward(logits: Tensor, target: Tensor, gradient: bool, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors shaped as ``(total, divisor, state)``."""
    dtype = loss_dtype(logits)
    total = logits.new_empty(target.shape if options.per_pixel else (), dtype=dtype)
    state = empty_gradient(logits, dtype) if gradient and not options.per_pixel else _no_state(logits)
    return total, logits.new_empty((), dtype=dtype), state
