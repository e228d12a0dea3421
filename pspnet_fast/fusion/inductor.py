"""A pass of Inductor for what Dynamo hides from the mode.

A criterion that is made inside a forward (``CrossEntropyLoss(ignore_index=255)(logits, labels)``, as in transformers)
is put into the graph without a call that a mode could see. Behind a graph break, as transformers' encoders have one,
the mode is not traced any more.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from pspnet_fast.fusion import convolution, cost, graph_nodes, logits, projection, segments, writes
from pspnet_fast.fusion.convolution import conv_plan, refusal
from pspnet_fast.fusion.graph_nodes import bound, is_hooked, is_written, linear_below, upsampling, value
from pspnet_fast.fusion.logits import Criterion, fused_loss, takes
from pspnet_fast.fusion.projection import as_projection
from pspnet_fast.fusion.segments import Geometry, Segment
from pspnet_fast.layout import format_of, suggests_channels_last

_LOSS = inspect.signature(F.cross_entropy)
# Of functions that are written in C++.
_CONV = inspect.signature(lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None)
_CAT = inspect.signature(lambda tensors, dim=0: None)


class FuseUpsampled(CustomGraphPass):
    """What reads a bilinear ``F.interpolate`` reads the low-resolution map instead.

    ``F.cross_entropy`` of it becomes ``upsample_cross_entropy``; ``conv2d`` of it, or of a concatenation with it, the
    form that ``conv_plan`` gives. ``conv2d`` of a linear layer's result reads what the layer was given.
    """

    def __init__(self, loss: bool = True, conv: bool = True) -> None:
        self.rules = [(F.cross_entropy, fused_loss, _loss)] * loss + [(torch.conv2d, fused_conv, _conv)] * conv

    def __call__(self, graph: fx.Graph) -> None:
        for target, fused, arguments in self.rules:
            for node in graph.find_nodes(op="call_function", target=target):
                replacement = arguments(node)
                if replacement is not None:
                    with graph.inserting_before(node):
                        result = graph.call_function(fused, replacement)
                    result.meta.update(node.meta)
                    node.replace_all_uses_with(result)
                    # Maps are dropped later; FX's own removal of dead code drops in-place methods.
                    graph.erase_node(node)

    def uuid(self) -> Any:
        modules = convolution, cost, graph_nodes, logits, projection, segments, writes
        sources = [str(module.__file__) for module in modules]
        return get_hash_for_files((__file__, *sources), str([target.__name__ for target, *_ in self.rules]))


def _loss(node: fx.Node) -> tuple[Any, ...] | None:
    """The arguments of :func:`fused_loss` for a call of ``F.cross_entropy``, or None where it does not apply."""
    call = bound(_LOSS, node)
    if call is None:
        return None
    full, *criterion = call.values()
    found = upsampling(full, node)
    if found is None or not takes(Criterion(*map(value, criterion))):
        return None
    low, geometry = found
    return low, geometry.align_corners, value(full).dtype, *criterion


# A map, its upsampling, as a tuple, and what F.linear was given if the map is made of its result; None for neither.
_Part = tuple[Any, Any, Any]


def fused_conv(parts: Sequence[_Part], weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """The convolution of maps, of which some are upsampled; in the layout of the stock result."""
    plan = conv_plan(_segments(parts), weight, lazy=False)
    assert plan is not None  # as for the graph
    return plan.fused([x for x, *_ in parts], [weight, bias]).contiguous(memory_format=format_of(channels_last))


def _segments(parts: Sequence[_Part]) -> list[Segment]:
    return [Segment(x, g and Geometry(*g), True, layer and as_projection(x, *layer)) for x, g, layer in parts]


def _conv(node: fx.Node) -> tuple[Any, ...] | None:
    """The arguments of :func:`fused_conv` for a call of ``conv2d``, or None where it does not apply."""
    call = bound(_CONV, node)
    if call is None:
        return None
    full, weight, bias, *options = call.values()
    if not isinstance(value(weight), Tensor) or refusal(value(weight), *options) is not None:
        return None
    parts = [_part(x, node) for x in _maps(full)]
    known = fx.map_arg(parts, value)
    maps = [x for x, *_ in known]
    if not all(isinstance(x, Tensor) and x.dim() == 4 and all(type(n) is int for n in x.shape) for x in maps):
        return None
    if sum(x.shape[1] for x in maps) != value(weight).shape[1] or len({x.dtype for x in maps}) != 1:
        return None
    if conv_plan(_segments(known), value(weight), lazy=False) is None:
        return None
    return parts, weight, bias, suggests_channels_last(value(node))


def _maps(x: Any) -> list[Any]:
    """The maps whose concatenation ``x`` is and stays, or ``x`` alone."""
    joined = bound(_CAT, x) if isinstance(x, fx.Node) and x.target in (torch.cat, torch.concat) else None
    if joined is None or joined["dim"] not in (1, -3):
        return [x]
    maps = [*joined["tensors"]]
    tensors = all(isinstance(value(m), Tensor) for m in maps)
    return [x] if not tensors or is_hooked(x) or is_written(x, [x, *maps]) else maps


def _part(x: Any, reader: fx.Node) -> _Part:
    """The low-resolution map and its upsampling if ``x`` is one when ``reader`` reads it, else ``x`` itself."""
    low, geometry = upsampling(x, reader) or (x, None)
    if geometry is not None and geometry.low == geometry.full:  # it copies
        geometry = None
    return low, geometry and tuple(geometry), linear_below(low, reader)
