"""The cross-entropy in stock operators, written anew from PyTorch's documentation, and drawn inputs for it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from running import random
from torch import Tensor


def stock_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: str | float = "valid",
    empty: str = "nan",
    align_corners: bool = True,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """``F.cross_entropy`` of ``F.interpolate``, in the logits' own dtype; PyTorch's own mean wherever it has one."""
    dtype = logits.dtype
    up = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=align_corners)
    weight = None if weight is None else weight.to(dtype)
    labels = target.to(torch.int64)

    def loss(how: str) -> Tensor:
        return F.cross_entropy(
            up, labels, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=how
        )

    valid = labels != ignore_index
    if pixel_weight is None and (reduction != "mean" or (denominator == "valid" and valid.any())):
        return loss(reduction)
    per_pixel = loss("none") * (1 if pixel_weight is None else pixel_weight.to(dtype))
    if reduction != "mean":
        return per_pixel if reduction == "none" else per_pixel.sum()

    if denominator == "all":
        divisor = float(target.numel())
    elif denominator == "valid":
        share = torch.ones_like(labels, dtype=torch.float64) if pixel_weight is None else pixel_weight.double()
        if weight is not None:
            share = share * weight.double()[labels.masked_fill(~valid, 0)]
        divisor = share[valid].sum().item()
    else:
        divisor = float(denominator)
    if divisor == 0:
        return per_pixel.sum() * 0 + (torch.nan if empty == "nan" else 0.0)
    return per_pixel.sum() / divisor


def draw_target(
    shape: tuple[int, int, int], classes: int, ignore_index: int = 255, dtype: torch.dtype = torch.int64,
    device: torch.device | str = "cpu", ignored: float = 0.2,
) -> Tensor:  # fmt: skip
    """Random labels; a share ``ignored`` of them is ``ignore_index`` (none where ``dtype`` cannot hold it)."""
    labels = torch.randint(classes, shape)
    if ignore_index >= 0 or dtype != torch.uint8:
        labels[torch.rand(shape) < ignored] = ignore_index
    return labels.to(device, dtype)


def draw_options(
    target: Tensor, classes: int, *, weighted: bool = False, pixels_weighted: bool = False, **options: Any
) -> dict[str, Any]:
    """The keyword arguments of the loss; weights are drawn, some of them zero."""
    if weighted:
        options["weight"] = random(classes, device=target.device).abs() + 0.1
        options["weight"][classes // 2] = 0
    if pixels_weighted:
        options["pixel_weight"] = random(*target.shape, device=target.device).clamp(min=0)
    return options


# One entry per option, and the combinations in which they meet.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "centres": {"align_corners": False},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing_1": {"label_smoothing": 1.0},
    "weight": {"weighted": True},
    "weight_smoothing": {"weighted": True, "label_smoothing": 0.2},
    "weight_none": {"weighted": True, "label_smoothing": 0.2, "reduction": "none"},
    "pixels": {"pixels_weighted": True},
    "pixels_weight": {"pixels_weighted": True, "weighted": True, "label_smoothing": 0.1},
    "pixels_none": {"pixels_weighted": True, "reduction": "none"},
    "pixels_sum": {"pixels_weighted": True, "reduction": "sum", "align_corners": False},
    "all": {"denominator": "all"},
    "all_weight": {"denominator": "all", "weighted": True, "pixels_weighted": True},
    "number": {"denominator": 123.5},
    "ignore_-1": {"ignore_index": -1},
    "ignore_-100": {"ignore_index": -100, "weighted": True},
    "ignore_0": {"ignore_index": 0},
}

ANY_OPTIONS = st.fixed_dictionaries(
    {
        "weighted": st.booleans(),
        "pixels_weighted": st.booleans(),
        "ignore_index": st.sampled_from([255, -1, -100, 0]),
        "label_smoothing": st.sampled_from([0.0, 0.05, 1.0]),
        "reduction": st.sampled_from(["none", "sum", "mean"]),
        "denominator": st.sampled_from(["valid", "all", 7.0]),
        "empty": st.sampled_from(["nan", "zero"]),
        "align_corners": st.booleans(),
    }
)

# (changed arguments, error, words of the message), for losses of logits [2, 3, 4, 5] and targets [2, 8, 10].
BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": torch.zeros(2, 1, 8, 10)}, ValueError, r"target must be a label map \[2, H, W\] .* not of shape"),
    ({"target": torch.zeros(3, 8, 10, dtype=torch.int64)}, ValueError, r"target must be a label map \[2, H, W\]"),
    (
        {"target": torch.zeros(2, 0, 10, dtype=torch.int64)},
        ValueError,
        r"target has no pixels: its shape is \(2, 0, 10\)",
    ),
    ({"target": torch.zeros(2, 8, 10)}, TypeError, r"target must be int64, int32 or uint8 .* not torch.float32"),
    ({"reduction": "avg"}, ValueError, r"reduction must be one of 'none', 'sum', 'mean', not 'avg'"),
    ({"denominator": "pixels"}, ValueError, r"denominator must be one of 'valid', 'all', not 'pixels'"),
    ({"denominator": 0}, ValueError, r"denominator must be 'valid', 'all' or a positive number, not 0"),
    ({"denominator": float("nan")}, ValueError, r"denominator must be 'valid', 'all' or a positive number, not nan"),
    ({"empty": "none"}, ValueError, r"empty must be one of 'nan', 'zero', not 'none'"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], not 1.5"),
    ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must be in \[0, 1\], not -0.1"),
    ({"weight": torch.ones(4)}, ValueError, r"weight must be \[3\], one per class, not \(4,\)"),
    ({"weight": torch.ones(3, requires_grad=True)}, ValueError, r"weight requires grad, .* pass weight.detach\(\)"),
    ({"weight": torch.ones(3, dtype=torch.complex64)}, TypeError, r"weight must be real, not torch.complex64"),
    (
        {"pixel_weight": torch.ones(2, 8, 10, dtype=torch.complex64)},
        TypeError,
        r"pixel_weight must be real, not torch.complex64",
    ),
    ({"pixel_weight": torch.ones(2, 4, 5)}, ValueError, r"pixel_weight must be \(2, 8, 10\), as target"),
    (
        {"pixel_weight": torch.ones(2, 8, 10, requires_grad=True)},
        ValueError,
        r"pixel_weight requires grad, .* pass pixel_weight.detach\(\)",
    ),
]
