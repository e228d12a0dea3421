"""What happens in a graph that Dynamo traces to the maps of a call, from that call on.

Dynamo shows a mode only some of the functions that write to tensors, but all of them are in its graph. These functions
run while it traces and are constants to it, so they take and give numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pspnet_fast.backend import constant_in_graphs

if TYPE_CHECKING:
    from torch import fx

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
    from pspnet_fast.fusion import graph_nodes  # imports a part of torch that takes long

    for call in (_calls()[number] for number in numbers):
        memory = graph_nodes.memory_of((call, *call.all_input_nodes))
        if graph_nodes.is_hooked(call) or graph_nodes.any_writes(_since(call), memory):
            return False
    return True


def _since(call: fx.Node) -> Iterator[fx.Node]:
    """All nodes behind ``call``: in its graph, and in those of the functions inside which Dynamo traces."""
    from pspnet_fast.fusion import graph_nodes

    yield from graph_nodes.between(call, call.graph._root)
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
