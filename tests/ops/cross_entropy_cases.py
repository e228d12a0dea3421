"""The cross-entropy in stock operators, written anew from PyTorch's documentation, and drawn inputs for it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from running import INTERPRETED, Sample, random
from torch import Tensor

from pspnet_fast import ops


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

ANY_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "weighted": st.booleans(),
    "pixels_weighted": st.booleans(),
    "ignore_index": st.sampled_from([255, -1, -100, 0]),
    "label_smoothing": st.sampled_from([0.0, 0.05, 1.0]),
    "reduction": st.sampled_from(["none", "sum", "mean"]),
    "denominator": st.sampled_from(["valid", "all", 7.0]),
    "empty": st.sampled_from(["nan", "zero"]),
    "align_corners": st.booleans(),
}


def of_images(x: Tensor, target: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a loss for the images of ``x``, which are others on meta tensors and where it is compiled."""
    moved = {name: value.to(x.device) if isinstance(value, Tensor) else value for name, value in options.items()}
    for name, value in {"target": target, "pixel_weight": options.get("pixel_weight")}.items():
        moved[name] = None if value is None else value[: len(x)].to(x.device)
    return moved


def draw_loss(
    low: tuple[int, int] = (4, 5), size: tuple[int, int] = (25, 33), classes: int = 5, scale: float = 3,
    labels: torch.dtype = torch.int64, ignored: float = 0.2, layout: str = "nchw", batch: int = 2,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any,
) -> Sample:  # fmt: skip
    logits = scale * random(batch, classes, *low, dtype=dtype, device=device, layout=layout)
    target = draw_target((batch, *size), classes, options.get("ignore_index", 255), labels, device, ignored)
    drawn = draw_options(target, classes, **options)
    return Sample(
        lambda z: ops.upsample_cross_entropy(z, **of_images(z, target, drawn)),
        lambda z: stock_loss(z, **of_images(z, target, drawn)),
        [logits],
    )


TWO_HEADS = (9, 13) if INTERPRETED else (17, 25)


def draw_dual(
    low: tuple[int, int] = (4, 5), aux_low: tuple[int, int] = (3, 5), size: tuple[int, int] = TWO_HEADS,
    classes: int = 4, labels: torch.dtype = torch.int64, aux_weight: float = 0.4, layout: str = "nchw", batch: int = 2,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any,
) -> Sample:  # fmt: skip
    """Of heads of sizes that differ, and of PSPNet's loss in stock operators. All three losses are results."""
    heads = [2 * random(batch, classes, *n, dtype=dtype, device=device, layout=layout) for n in (low, aux_low)]
    target = draw_target((batch, *size), classes, options.get("ignore_index", 255), labels, device)
    drawn = draw_options(target, classes, **options)

    def stock(main: Tensor, aux: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses = (stock_loss(head, **of_images(head, target, drawn)) for head in (main, aux))
        main_loss, aux_loss = losses
        return main_loss + aux_weight * aux_loss, main_loss, aux_loss

    def fused(main: Tensor, aux: Tensor) -> ops.DualLoss:
        return ops.dual_cross_entropy(main, aux, aux_weight=aux_weight, **of_images(main, target, drawn))

    return Sample(fused, stock, heads)
