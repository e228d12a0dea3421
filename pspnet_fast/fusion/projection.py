"""A convolution of a map that is a linear layer's result, computed from what the layer was given.

The heads of SegFormer project each map to many channels by ``F.linear`` and multiply these by a 1x1 convolution. The
product of both weights is small, so that the convolution, and its weight's gradient, take as many channels as the map
had before. The linear layer stays in the graph and gets its gradient from the convolution, as in the stock model.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast.layout import memory_format, same_layout

_REMEMBERED = 4  # calls; a model upsamples what it has just projected


class Projection(NamedTuple):
    """A map is ``F.conv2d(x, weight[..., None, None], bias)`` of ``x [B, c, h, w]``, while ``x`` has this version."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    version: int

    @property
    def intact(self) -> bool:
        return self.x._version == self.version


class Projections:
    """The linear layers that were called last inside the forward of an accelerated model.

    Attributes:
        all: whether every layer is noted, as in the first call of a model; else those of ``weights``.
        weights: ids of the weights of layers whose results were upsampled and convolved in the first call.
        used: the ids of the weights of layers whose results were upsampled in this call.
    """

    def __init__(self) -> None:
        self.all, self.weights, self.used = False, frozenset[int](), set[int]()
        self._calls: deque[tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], Any]] = deque(maxlen=_REMEMBERED)
        self._copies: deque[tuple[Tensor, Any, Projection]] = deque(maxlen=_REMEMBERED)

    @property
    def pending(self) -> bool:
        """Whether a result may still be upsampled or convolved: until then nothing may write to it unseen."""
        return bool(self._calls or self._copies)

    def clear(self) -> None:
        self._calls.clear()
        self._copies.clear()

    def note(self, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        """``y = F.linear(x, weight, bias)`` was called."""
        if not (self.all or id(weight) in self.weights) or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        plain = type(y) is type(x) is Tensor and type(weight) is torch.nn.Parameter
        if plain and type(bias) in (torch.nn.Parameter, type(None)) and saves_input(y, x, weight, bias):
            self._calls.append(((y, x, weight, bias), _state(y, x, weight, bias)))

    def note_copy(self, y: Tensor, projection: Projection) -> None:
        """The map ``y`` is a copy of the one that ``projection`` gives."""
        self._copies.append((y, _state(y), projection))

    def of(self, s: Any) -> Projection | None:
        """What the map ``s [B, C, h, w]`` is a projection of, if it is a view of a linear layer's result, or a copy.

        Once: what is not read again is not kept.
        """
        if not self.pending or type(s) is not Tensor or s.dim() != 4 or s.is_neg():
            return None
        for i, (y, state, projection) in enumerate(self._copies):
            if y.shape == s.shape and y.data_ptr() == s.data_ptr() and same_layout(s, y.stride()):
                del self._copies[i]
                return projection if _state(y) == state and projection.intact else None
        for i, (tensors, state) in enumerate(self._calls):
            y, x, weight, bias = tensors
            if is_map_of(s, y) and s.data_ptr() == y.data_ptr():
                del self._calls[i]
                if _state(*tensors) != state:  # written to, or gone, as a sharded weight is by now
                    return None
                self.used.add(id(weight))
                copy = None if bias is None else bias.detach().clone()
                return as_projection(s, x.detach(), weight.detach().clone(), copy)
        return None


def _state(*tensors: Tensor | None) -> list[tuple[int, int]]:
    """What changes where a tensor is written to, or gets other memory."""
    return [(t._version, t.data_ptr()) for t in tensors if t is not None]


def saves_input(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``y = F.linear(x, weight, bias)`` is a layer over tokens ``[B, N, c]`` for which autograd keeps ``x``.

    It may keep a copy. Where it keeps neither, programs do write to ``x`` before backward, in which it is read here.
    """
    given = [t for t in (x, weight, bias) if t is not None]
    return (
        y.layout == torch.strided
        and not y.is_nested
        and y.dim() == 3
        and y.dtype in (torch.float32, torch.float64)
        and all(t.dtype == y.dtype for t in given)
        and (bias is None or bias.shape == weight.shape[:1])
        and y.requires_grad
        and x.requires_grad
        and weight.requires_grad
    )


def as_projection(s: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Projection:
    """Of the map ``s`` that is made of ``F.linear(x, weight, bias)``."""
    return Projection(x.unflatten(1, s.shape[2:]).permute(0, 3, 1, 2), weight, bias, x._version)


def is_map_of(s: Tensor, y: Tensor) -> bool:
    """Whether a view of ``y [B, h * w, C]`` from its start on is the map ``[B, C, h, w]`` if it looks like ``s``."""
    if y.shape != (s.shape[0], s.shape[2] * s.shape[3], s.shape[1]):
        return False
    return same_layout(s, (y.stride(0), y.stride(2), s.shape[3] * y.stride(1), y.stride(1)))


def projected_conv2d(s: Tensor, weight: Tensor, bias: Tensor | None, projection: Projection) -> Tensor:
    """``F.conv2d(s, weight, bias)`` by a 1x1 ``weight``, for the map ``s`` that ``projection`` gives."""
    result: Tensor = _ProjectedConv2d.apply(s, weight, bias, projection)
    return result


class _ProjectedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor | None, projection: Projection) -> Tensor:
        outer = weight.flatten(1)
        offset = bias
        if projection.bias is not None:
            offset = outer @ projection.bias if bias is None else torch.addmv(bias, outer, projection.bias)
        x = projection.x.contiguous(memory_format=memory_format(s))
        joined = (outer @ projection.weight)[..., None, None]
        ctx.save_for_backward(weight, x, joined, projection.weight, projection.bias)
        return F.conv2d(x, joined, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, x, joined, inner, inner_bias = ctx.saved_tensors
        grad_s = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_s = F.conv2d(grad, weight.transpose(0, 1))
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            summed = ctx.needs_input_grad[2] or inner_bias is not None
            options = [joined.shape[0]], (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, summed)
            _, grad_joined, grad_bias = torch.ops.aten.convolution_backward(grad, x, joined, *options)
            grad_weight = grad_joined.flatten(1) @ inner.T
            if inner_bias is not None:
                grad_weight = torch.addr(grad_weight, grad_bias, inner_bias)
            grad_weight = grad_weight[..., None, None]
        return grad_s, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None
