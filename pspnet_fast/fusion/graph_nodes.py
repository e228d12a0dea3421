"""What the graphs that Dynamo traces show of a call: its arguments, its tensors, and what is written in between."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from pspnet_fast.fusion.segments import pair
from pspnet_fast.fusion.writes import writes

_UPSAMPLE = inspect.signature(F.interpolate)


def bound(signature: inspect.Signature, node: fx.Node) -> dict[str, Any] | None:
    """The arguments by their names; None where a call has others."""
    try:
        arguments = signature.bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    arguments.apply_defaults()
    return arguments.arguments


def value(argument: Any) -> Any:
    """The tensor without data that Dynamo computed for a node."""
    return argument.meta.get("example_value") if isinstance(argument, fx.Node) else argument


def enlargement(full: Any, reader: fx.Node) -> tuple[fx.Node, bool] | None:
    """The low-resolution map, and whether corners are aligned, if ``full`` is its bilinear upsampling.

    None as well where something writes to either before ``reader`` reads it.
    """
    if not isinstance(full, fx.Node) or full.target is not F.interpolate:
        return None
    upsampling = bound(_UPSAMPLE, full)
    if upsampling is None or not _is_enlargement(upsampling, value(upsampling["input"]), value(full)):
        return None
    low = upsampling["input"]
    return None if is_written(full, reader, (low, full)) else (low, bool(upsampling["align_corners"]))


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


def is_written(start: fx.Node, end: fx.Node, maps: Sequence[fx.Node]) -> bool:
    """Whether anything between the nodes writes to the memory of ``maps``, or hooks into their gradient."""
    memory = {value(x).untyped_storage()._cdata for x in maps}
    for node in _between(start, end):
        function: Any = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
        first = value(node.args[0]) if node.args else None
        hooks = function is Tensor.register_hook or function is Tensor.retain_grad
        if isinstance(first, Tensor) and (hooks or writes(function, node.args, node.kwargs)):
            written = [first, value(node.kwargs.get("out", first))]
            if any(x.untyped_storage()._cdata in memory for x in written):
                return True
    return False


def _between(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    node = start.next
    while node is not end:
        yield node
        node = node.next
