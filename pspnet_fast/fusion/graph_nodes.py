"""What the graphs that Dynamo traces show of a call: its arguments, its tensors, and what is written in between."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from pspnet_fast.fusion.projection import is_map_of, saves_input
from pspnet_fast.fusion.segments import pair, storage_of
from pspnet_fast.fusion.writes import writes

_UPSAMPLE = inspect.signature(F.interpolate)
_LINEAR = inspect.signature(lambda input, weight, bias=None: None)  # of a function that is written in C++


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

    None as well where something may write to either, reads the gradient of ``full``, or changes between it and
    ``reader`` how operators are recorded.
    """
    if not isinstance(full, fx.Node) or full.target is not F.interpolate:
        return None
    upsampling = bound(_UPSAMPLE, full)
    if upsampling is None or not _is_enlargement(upsampling, value(upsampling["input"]), value(full)):
        return None
    low = upsampling["input"]
    if is_hooked(full) or any(map(_changes_state, between(full, reader))) or is_written(full, (low, full)):
        return None
    return low, bool(upsampling["align_corners"])


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


def linear_below(x: Any, reader: fx.Node) -> tuple[Any, Any, Any] | None:
    """What ``F.linear`` was given if the map ``x`` is a view of its result, or a copy of one; None otherwise.

    None as well where something may write to any of it, reads a gradient in between, or changes how operators are
    recorded.
    """
    if isinstance(x, fx.Node) and x.target == "clone":
        x = x.args[0]
    views = [x]
    while isinstance(views[-1], fx.Node) and views[-1].op == "call_method" and len(views) <= 4:
        views.append(views[-1].args[0])
    layer = views[-1]
    call = bound(_LINEAR, layer) if isinstance(layer, fx.Node) and layer.target is F.linear else None
    if call is None or len(views) == 1 or not _is_map(value(x), value(layer)):
        return None
    if not saves_input(*map(value, (layer, *call.values()))):
        return None
    nodes = [node for node in (layer, *call.values()) if node is not None]
    if any(map(is_hooked, views)) or any(map(_changes_state, between(layer, reader))) or is_written(layer, nodes):
        return None
    return call["input"], call["weight"], call["bias"]


def _is_map(s: Any, y: Tensor) -> bool:
    """Whether ``s [B, C, h, w]`` is a view of ``y [B, h * w, C]``."""
    if not isinstance(s, Tensor) or s.dim() != 4 or y.dim() != 3 or any(type(n) is not int for n in s.shape):
        return False
    same_start = s.untyped_storage()._cdata == y.untyped_storage()._cdata and s.storage_offset() == y.storage_offset()
    return bool(same_start) and is_map_of(s, y)


def is_hooked(x: fx.Node) -> bool:
    """Whether code reads the gradient of ``x``, or replaces it."""
    return any(getattr(user.target, "__name__", user.target) in ("register_hook", "retain_grad") for user in x.users)


def is_written(start: fx.Node, maps: Sequence[fx.Node]) -> bool:
    """Whether anything behind ``start`` may write to the memory of ``maps``, which backward reads as well."""
    return any_writes(between(start, start.graph._root), memory_of(maps))


def any_writes(nodes: Iterable[fx.Node], memory: set[int]) -> bool:
    """Whether any of ``nodes`` may write to ``memory``, a set of :func:`memory_of`."""
    return any(_may_write(node) and memory & memory_of(node.all_input_nodes) for node in nodes)


def memory_of(nodes: Iterable[fx.Node]) -> set[int]:
    """The storages of the tensors that ``nodes`` give."""
    tensors = map(value, nodes)
    return {storage_of(x) for x in tensors if isinstance(x, Tensor) and x.layout == torch.strided}


def _may_write(node: fx.Node) -> bool:
    """Whether the call writes to one of its arguments, or is of a kind that is not known."""
    function: Any = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
    if node.op not in ("call_method", "call_function"):
        return node.op == "call_module"
    module = getattr(function, "__module__", None) or "torch"
    if isinstance(function, torch._ops.HigherOrderOperator):  # runs code of its own
        return True
    known = module.split(".")[0] in ("_operator", "builtins", "torch", "pspnet_fast") and "_dynamo" not in module
    return not known or writes(function, node.args, node.kwargs)


def _changes_state(node: fx.Node) -> bool:
    """Whether what follows is recorded or cast in another way: the ends of ``no_grad`` and ``autocast`` blocks."""
    name = getattr(node.target, "__name__", "")
    return "grad_enabled" in name or "autocast" in name or "inference_mode" in name


def between(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """The nodes behind ``start`` and before ``end``; up to the end of the graph if that is its root."""
    node = start.next
    while node is not end:
        yield node
        node = node.next
