"""A pass of Inductor for the losses that Dynamo hides from the mode.

A criterion that is made inside a forward (``CrossEntropyLoss(ignore_index=255)(logits, labels)``, as in transformers)
is put into the graph without a call that a mode could see.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx.experimental.symbolic_shapes import statically_known_true

from pspnet_fast.fusion.segments import pair
from pspnet_fast.fusion.traced_heads import fused_loss, takes
from pspnet_fast.fusion.writes import writes

_LOSS, _UPSAMPLE = inspect.signature(F.cross_entropy), inspect.signature(F.interpolate)


class FuseLosses(CustomGraphPass):
    """``F.cross_entropy`` of a bilinear ``F.interpolate`` becomes ``upsample_cross_entropy``."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=F.cross_entropy):
            replacement = _arguments(node)
            if replacement is not None:
                with graph.inserting_before(node):
                    loss = graph.call_function(fused_loss, replacement)
                loss.meta.update(node.meta)
                node.replace_all_uses_with(loss)
                graph.erase_node(node)  # the map is dropped later; FX's own removal of dead code drops in-place methods

    def uuid(self) -> Any:
        return get_hash_for_files((__file__, inspect.getfile(fused_loss), inspect.getfile(writes)))


def _arguments(node: fx.Node) -> tuple[Any, ...] | None:
    """Of :func:`fused_loss` for a call of ``F.cross_entropy``, or None where it does not apply."""
    call = _bound(_LOSS, node)
    full, target, weight = call["input"], call["target"], call["weight"]
    if call["size_average"] is not None or call["reduce"] is not None or not takes(_value(target), _value(weight)):
        return None
    if not isinstance(full, fx.Node) or full.target is not F.interpolate:
        return None
    upsampling = _bound(_UPSAMPLE, full)
    low = upsampling["input"]
    if not _is_enlargement(upsampling, _value(low), _value(full)) or _is_written(full, node, (low, full)):
        return None
    options = target, weight, call["ignore_index"], call["reduction"], call["label_smoothing"]
    return low, bool(upsampling["align_corners"]), *options, _value(full).dtype


def _bound(signature: inspect.Signature, node: fx.Node) -> dict[str, Any]:
    bound = signature.bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _value(argument: Any) -> Any:
    """The tensor without data that Dynamo computed for a node."""
    return argument.meta.get("example_value") if isinstance(argument, fx.Node) else argument


def _is_enlargement(upsampling: dict[str, Any], low: Any, full: Any) -> bool:
    if not isinstance(low, Tensor) or upsampling["mode"] != "bilinear" or upsampling["antialias"]:
        return False
    sizes = list(zip(low.shape[2:], full.shape[2:], strict=True))
    factors = pair(upsampling["scale_factor"])
    if factors is not None and not upsampling["align_corners"]:
        # PyTorch uses the factor itself then: the same where it gives whole sizes.
        exact = [statically_known_true(n * f == m) for (n, m), f in zip(sizes, factors, strict=True)]
        if upsampling["recompute_scale_factor"] or not all(exact):
            return False
    return all(statically_known_true(n <= m) for n, m in sizes)


def _is_written(start: fx.Node, end: fx.Node, maps: tuple[fx.Node, ...]) -> bool:
    """Whether anything between the nodes writes to the memory of ``maps``, or hooks into their gradient."""
    memory = {_value(x).untyped_storage()._cdata for x in maps}
    for node in _between(start, end):
        function: Any = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
        first = _value(node.args[0]) if node.args else None
        hooks = function is Tensor.register_hook or function is Tensor.retain_grad
        if isinstance(first, Tensor) and (hooks or writes(function, node.args, node.kwargs)):
            written = [first, _value(node.kwargs.get("out", first))]
            if any(x.untyped_storage()._cdata in memory for x in written):
                return True
    return False


def _between(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    node = start.next
    while node is not end:
        yield node
        node = node.next
