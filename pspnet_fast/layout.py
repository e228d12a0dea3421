"""Memory layouts: an operator answers in the layout of its map, as PyTorch's own convolutions and poolings do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x [B, C, H, W]`` is laid out in channels_last memory and could not pass for NCHW."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def suggests_channels_last(x: Tensor) -> bool:
    """Whether PyTorch's operators answer ``x [B, C, H, W]`` in channels_last (``suggest_memory_format`` in C++).

    The strides decide, also where a dimension has one element.
    """
    least = 0
    for d in (1, 3, 2, 0):
        if x.shape[d] == 0 or x.stride(d) < least or x.stride(1) == 0 or (d == 0 and least == x.stride(1)):
            return False
        least = x.stride(d) * max(x.shape[d], 1)
    return True


def is_dense(x: Tensor) -> bool:
    """Whether ``x [B, C, H, W]`` fills its memory without gaps, in NCHW or channels_last order."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def same_layout(tensor: Tensor, strides: Sequence[int]) -> bool:
    """Whether the strides agree in every dimension that has more than one element."""
    return all(n == 1 or s == t for n, s, t in zip(tensor.shape, tensor.stride(), strides, strict=True))


def format_of(channels_last: bool) -> torch.memory_format:
    """The memory format by its name in the schemas."""
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_map(like: Tensor, channels: int, height: int, width: int, channels_last: bool) -> Tensor:
    """An empty map of ``like``'s batch, dtype and device."""
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format_of(channels_last))


def empty_levels(like: Tensor, packed: int) -> Tensor:
    """Empty packed levels ``[B, C, packed]`` for the map ``like``, channels side by side where the map has them so."""
    batch, channels = like.shape[:2]
    inner = (1, channels) if is_channels_last(like) else (packed, 1)
    return like.new_empty_strided((batch, channels, packed), (channels * packed, *inner))


def empty_like_dense(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty map of ``x``'s shape: in its layout if that is NCHW or channels_last, else in NCHW."""
    layout = torch.preserve_format if is_dense(x) else torch.contiguous_format
    return torch.empty_like(x, dtype=dtype, memory_format=layout)


def memory_format(x: Tensor) -> torch.memory_format:
    """The format that results of ``x [B, C, H, W]`` take."""
    return format_of(is_channels_last(x))
