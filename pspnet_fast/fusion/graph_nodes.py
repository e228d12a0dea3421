"""What the graphs that Dynamo traces show of a call: its arguments, its tensors, and what is written in between.

The mode sees only some of the functions that write to tensors, but all of them are in the graph, from the call on. What
it asks while Dynamo traces is a constant to it, so that these functions take and give numbers.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pspnet_fast.backend import constant_in_graphs
from pspnet_fast.fusion.projection import is_map_of, saves_input
from pspnet_fast.fusion.segments import Geometry, Resize, enlargement, storage_of
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


def upsampling(full: Any, reader: fx.Node) -> tuple[fx.Node, Geometry] | None:
    """The low-resolution map, and the geometry, if ``full`` is its bilinear upsampling.

    None as well where something may write to either, reads the gradient of ``full``, or changes between it and
    ``reader`` how operators are recorded.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes long to import

    call = bound(_UPSAMPLE, full) if isinstance(full, fx.Node) and full.target is F.interpolate else None
    if call is None or not isinstance(value(call["input"]), Tensor):
        return None
    low, *options = call.values()
    geometry = enlargement(value(low).shape, value(full).shape, Resize(*options), statically_known_true)
    if geometry is None or is_hooked(full) or any(map(_changes_state, between(full, reader))):
        return None
    return None if is_written(full, (low, full)) else (low, geometry)


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


_TRACES = itertools.count()


@constant_in_graphs
def trace() -> int:
    """A number of the code that is being traced as one; -1 outside of it, and inside transforms of ``torch.func``."""
    context = torch._guards.TracingContext.try_get()
    outside = context is None or torch._C._functorch.peek_interpreter_stack() is not None
    number: int = -1 if outside else context.__dict__.setdefault("pspnet_fast_trace", next(_TRACES))
    return number


@constant_in_graphs
def last_call() -> int:
    """A number of the call that Dynamo has put into its graph last."""
    calls = _calls()
    calls.append(_graphs()[-1]._root.prev)
    return len(calls) - 1


@constant_in_graphs
def stand(*numbers: int) -> bool:
    """Whether the maps that the calls read and gave are as they were, and no code reads the gradient of a result."""
    for call in (_calls()[number] for number in numbers):
        memory = memory_of((call, *call.all_input_nodes))
        if is_hooked(call) or any_writes(_since(call), memory):
            return False
    return True


def _since(call: fx.Node) -> Iterator[fx.Node]:
    """All nodes behind ``call``: in its graph, and in those of the functions inside which Dynamo traces."""
    yield from between(call, call.graph._root)
    graphs = _graphs()
    for graph in graphs[graphs.index(call.graph) + 1 :] if call.graph in graphs else ():
        yield from graph.nodes


def _graphs() -> Sequence[Any]:
    """The graph of the trace, and those of the functions of higher-order operators inside which it is."""
    from torch._dynamo.symbolic_convert import InstructionTranslator  # loaded by now; takes long to import before

    return [tracer.graph for tracer in InstructionTranslator.current_tx().output.tracers]


def _calls() -> list[Any]:
    context = torch._guards.TracingContext.get()
    calls: list[Any] = context.__dict__.setdefault("pspnet_fast_calls", [])
    return calls
