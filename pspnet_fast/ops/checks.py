"""Argument checks shared by the operators: each error names the argument, its value and the remedy."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from pspnet_fast.reference import Bin, NormStatistics, level_sizes

LABEL_DTYPES = (torch.int64, torch.int32, torch.uint8)
MAX_BIN = 4096  # a side of a level; what it packs is k² bins
MAX_SIDE = 2**24  # a side of a map; float32 counts pixels exactly up to it


def check_bins(bins: Sequence[int]) -> list[int]:
    """``bins`` as a list; raises unless it holds at least one integer of 1 to :data:`MAX_BIN` and nothing else."""
    try:
        checked = [operator.index(k) for k in bins if not isinstance(k, bool)]
    except TypeError:
        checked = []
    if not checked or len(checked) != len(bins) or min(checked) < 1 or max(checked) > MAX_BIN:
        raise ValueError(f"bins must be a sequence of integers of 1 to {MAX_BIN} such as (1, 2, 3, 6), not {bins!r}")
    return checked


def check_level_sizes(bins: Sequence[Bin]) -> list[tuple[int, int]]:
    """``(h, w)`` of each level; raises unless ``bins`` holds at least one side or pair of sides.

    While a graph is captured the sides of a pair may be symbols.
    """
    if not any(isinstance(entry, Sequence) for entry in bins):
        return [(k, k) for k in check_bins(bins)]  # type: ignore[arg-type]
    sizes = [(k, k) if not isinstance(k, Sequence) else tuple(k) for k in bins]
    limited = not torch.compiler.is_compiling()
    for size in sizes:
        whole = all(isinstance(n, int | torch.SymInt) and not isinstance(n, bool) for n in size)
        if len(size) != 2 or not whole or min(size) < 1 or (limited and max(size) > MAX_BIN):
            raise ValueError(
                f"bins must be a sequence of integers of 1 to {MAX_BIN} such as (1, 2, 3, 6), or of sizes such as "
                f"((64, 128), (32, 64)), not {bins!r}"
            )
    return sizes  # type: ignore[return-value]


def check_size(size: Sequence[int]) -> None:
    """Raises unless ``size`` is the ``(height, width)`` of a map whose positions float32 can count."""
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size must be (height, width) of two integers, not {size!r}")
    # While a graph is captured sizes are symbols, which an upper limit would restrict.
    too_large = not torch.compiler.is_compiling() and max(size) > MAX_SIDE
    if min(size) < 1 or too_large:
        raise ValueError(f"size must be (height, width) of 1 to {MAX_SIDE} each, not {tuple(size)}")


def check_tensor(name: str, value: object) -> None:
    """Raises unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(value).__name__}; convert it with torch.as_tensor")


def check_map(name: str, x: Tensor) -> None:
    """Raises unless ``x`` is a floating-point map ``[B, C, H, W]`` with at least one pixel."""
    check_tensor(name, x)
    if x.dim() != 4:
        raise ValueError(f"{name} must be [B, C, H, W], not of shape {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating-point, not {x.dtype}; convert it with {name}.float()")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{name} has no pixels: its shape is {tuple(x.shape)}")


def check_levels(levels: Tensor, bins: Sequence[Bin], x: Tensor | None = None) -> None:
    """Raises unless ``levels`` packs a map for each of ``bins``, for the batch of ``x`` or else in floating point."""
    check_tensor("levels", levels)
    packed = sum(h * w for h, w in level_sizes(bins))
    if levels.dim() != 3 or levels.shape[2] != packed or (x is not None and levels.shape[0] != x.shape[0]):
        batch, given = ("B, C", "") if x is None else (f"{x.shape[0]}, channels", f"x of batch {x.shape[0]} and ")
        raise ValueError(
            f"levels must be [{batch}, {packed}] for {given}bins {tuple(bins)} (packed as pyramid_pool packs them), "
            f"not {tuple(levels.shape)}"
        )
    if x is None and not levels.dtype.is_floating_point:
        raise TypeError(f"levels must be floating-point, not {levels.dtype}; convert it with levels.float()")
    if levels.shape[1] < 1:
        raise ValueError(f"levels have no channels: their shape is {tuple(levels.shape)}")
    if x is not None:
        same_device("levels", levels, "x", x)


def check_target(logits: Tensor, target: Tensor) -> None:
    """Raises unless ``target`` is a label map ``[B, H, W]`` for the batch of ``logits``."""
    check_tensor("target", target)
    if target.dim() != 3 or target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"target must be a label map [{logits.shape[0]}, H, W] for logits {tuple(logits.shape)}, "
            f"not of shape {tuple(target.shape)}"
        )
    if target.dtype not in LABEL_DTYPES:
        raise TypeError(f"target must be int64, int32 or uint8 class indices, not {target.dtype}")
    same_device("target", target, "logits", logits)


def same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device} but {other_name} on {other.device}; move one with .to({str(other.device)!r})"
        )


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both tensors are on one device and have one dtype, or autocast will give them one."""
    same_device(name, tensor, other_name, other)
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(other.device.type):
        raise TypeError(f"{name} is {tensor.dtype} but {other_name} {other.dtype}; convert it with .to({other.dtype})")


def check_norm(name: str, norm: NormStatistics, weight: Tensor) -> None:
    """Raises unless every tensor of ``norm`` has one entry for each output channel of ``weight``."""
    if not isinstance(norm, NormStatistics):
        raise TypeError(f"{name} must be NormStatistics(mean, var, gamma, beta, eps), not {type(norm).__name__}")
    if not (math.isfinite(norm.eps) and norm.eps >= 0):
        raise ValueError(f"{name}.eps must be a finite number of at least 0, not {norm.eps!r}")
    for field, tensor in zip(norm._fields[:4], norm[:4], strict=True):
        check_tensor(f"{name}.{field}", tensor)
        if tensor.shape != weight.shape[:1]:
            raise ValueError(f"{name}.{field} must be [{weight.shape[0]}], not {list(tensor.shape)}")
        same_device(f"{name}.{field}", tensor, "weight", weight)


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether an operator must be made of what is differentiable: autograd needs a gradient for any of the tensors.

    So it must be under torch.jit.trace, which compares a trace with gradients with one without.
    """
    return torch.jit.is_tracing() or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
