"""A fused operator in the place of a stock one: the same node of the graph, computed from low-resolution maps.

The node's input is the full-resolution map, as in the stock graph. Its gradient is deferred: it has the low-resolution
gradients for the upsampling before the node, and code that reads the gradient itself (a hook, ``retain_grad``,
``torch.autograd.grad``) gets the stock operator's. A second derivative is taken of the stock operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch

from pspnet_fast.fusion.cells import Cell
from pspnet_fast.fusion.deferred import Deferred, form_of, wrap
from pspnet_fast.fusion.segments import Geometry, Segment, assemble, enlarge, stock_operators, under_this_autocast
from pspnet_fast.fusion.upsampling import pull, upsampled

_Fused = Callable[[list[Tensor], list[Any]], Tensor]
_Stock = Callable[[Tensor, list[Any]], Tensor]
_Tensors = Sequence[Tensor | None]

_FREED = "Trying to backward through the graph a second time: specify retain_graph=True in the first"
_NO_GRADIENTS = (None,) * 4  # of the arguments of _FusedNode before the map


def run(fused: _Fused, stock: _Stock, x: Deferred, *others: Tensor | None, geometry: Geometry | None = None) -> Tensor:
    """``stock(x, others)`` by ``fused``, in the autograd graph.

    Args:
        fused: ``(tensors of the segments, other tensors) -> result``.
        stock: ``(full-resolution map, other tensors) -> result``, the same.
        geometry: where given, ``fused`` gives a low-resolution map, and the result is this upsampling of it.
    """
    stock = under_this_autocast(stock, x.device.type)
    with torch._C.DisableTorchFunction():
        result: Tensor = _FusedNode.apply(fused, stock, geometry, torch.is_grad_enabled(), x, *others)
        return result


def supported() -> bool:
    """Whether nothing is active that these nodes do not know: functorch, tracing, forward-mode AD."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and not torch.jit.is_tracing()
        and torch.autograd.forward_ad._current_level < 0
    )


class _FusedNode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: _Fused, stock: _Stock, geometry: Geometry | None, recording: bool, x: Deferred, *others: Any
    ) -> Tensor:
        cell, segments = x.cell, x.cell.segments
        recording = recording and any(t is not None and t.requires_grad for t in (x, *others))
        # A tensor that was adopted by another graph (x.detach().requires_grad_()) needs the gradients of all.
        every = not any(s.requires_grad for s in segments)
        wanted = recording and x.requires_grad
        leaves = [s.tensor.detach().requires_grad_(wanted and (every or s.requires_grad)) for s in segments]
        parameters = [None if t is None else t.detach().requires_grad_(recording and t.requires_grad) for t in others]
        with torch.set_grad_enabled(recording):
            inner = fused(leaves, parameters)

        if recording:
            ctx.save_for_backward(*others)
            ctx.stock, ctx.geometry, ctx.x, ctx.graph = stock, geometry, x, (inner, leaves, parameters)
            ctx.origin = Cell(lambda: assemble(segments, cell.kind), segments, cell.session, kind=cell.kind)
        low = inner.detach()
        if geometry is None:
            return low
        build = functools.partial(enlarge, low, geometry)
        return upsampled(Segment(low, geometry, recording), cell.session, build)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        others = ctx.saved_tensors
        if ctx.graph is None:
            raise RuntimeError(_FREED)
        stock, x, needed = ctx.stock, ctx.x, ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            return *_NO_GRADIENTS, *_by_stock(stock, x, others, grad, needed, create_graph=True)
        if ctx.origin.value is not None:  # a tensor of the segments was going to be written to
            full = ctx.origin.value.detach().requires_grad_()
            return *_NO_GRADIENTS, *_by_stock(stock, full, others, grad, needed)

        inner, leaves, parameters = ctx.graph
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        wanted = [t for t in (*leaves, *parameters) if t is not None and t.requires_grad]
        inner_grad = grad if ctx.geometry is None else pull(grad, ctx.geometry)
        gradients = torch.autograd.grad(inner, wanted, inner_grad, retain_graph=keep, allow_unused=True)
        found = {id(t): g for t, g in zip(wanted, gradients, strict=True)}
        grad_x = None
        if needed[0]:
            grad_x = _deferred_gradient(stock, x, ctx.origin, [found.get(id(t)) for t in leaves], others, grad)
        result = *_NO_GRADIENTS, grad_x, *[found.get(id(t)) for t in parameters]
        if not keep:
            ctx.graph = ctx.x = ctx.origin = None
        return result


def _by_stock(
    stock: _Stock, x: Tensor, others: _Tensors, grad: Tensor, needed: Sequence[bool], create_graph: bool = False
) -> list[Tensor | None]:
    """The stock operator's gradients."""
    if isinstance(x, Deferred) and x.cell.exposed:
        raise RuntimeError("a second derivative by a map that has been modified in place, or viewed, since its use")
    inputs = [t for t, wanted in zip((x, *others), needed, strict=True) if wanted and t is not None]
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        y = stock(x, list(others))
        found = iter(torch.autograd.grad(y, inputs, grad, create_graph=create_graph, allow_unused=True))
    return [next(found) if wanted else None for wanted in needed]


def _deferred_gradient(
    stock: _Stock, x: Tensor, origin: Cell, gradients: _Tensors, others: _Tensors, grad: Tensor
) -> Tensor:
    """The gradient of the full-resolution map ``x``, which knows those of the tensors that it is made of."""
    pieces = []
    for s, g in zip(origin.segments, gradients, strict=True):
        pieces.append(Segment(s.tensor.new_zeros(()).expand(s.tensor.shape) if g is None else g, s.geometry, False))
    fixed = [None if t is None else t.detach() for t in others]

    def build() -> Tensor:
        # This may be called below autograd, which the stock operator needs.
        with enable_reentrant_dispatch(), stock_operators(), torch.enable_grad():
            full = origin.peek().detach().requires_grad_()
            return torch.autograd.grad(stock(full, fixed), full, grad)[0]

    return wrap(Cell(build, pieces, origin.session, kind=origin.kind, adjoint=True), form_of(x), x.device)
