"""A backend of ``torch.compile`` that tells what is in the graph."""

from __future__ import annotations

from torch._dynamo.backends.common import aot_autograd


class Recorder:
    """A backend that runs a graph as it is, after the passes of ``options``, and remembers what it called."""

    def __init__(self, options=None):
        self.targets = []
        self.passes = list((options or {}).values())

    def __call__(self, graph, inputs):
        for change in self.passes:
            change(graph.graph)
        graph.recompile()

        def names(graph, inputs):
            self.targets += [str(node.target) for node in graph.graph.nodes]
            return graph.forward

        return aot_autograd(fw_compiler=names)(graph, inputs)

    def has(self, name):
        return any(name in target for target in self.targets)
