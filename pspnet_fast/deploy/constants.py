"""What a recorded graph computes from its weights alone is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Replace every operator that depends on no input by its value, a buffer; in place.

    What an operator writes to is left as it is.
    """
    values: dict[fx.Node, Any] = {}
    written = {node.all_input_nodes[0] for node in graph_module.graph.nodes if _writes(node)}
    for node in graph_module.graph.nodes:
        if _writes(node) or node in written:
            continue
        if node.op == "get_attr":
            values[node] = _attribute(graph_module, str(node.target))
        elif node.op == "call_function" and all(parent in values for parent in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        if node.op == "call_function" and isinstance(value, Tensor) and not values.keys() >= node.users.keys():
            name = f"_constant_{node.name}"
            graph_module.register_buffer(name, value.detach().contiguous())
            with graph_module.graph.inserting_before(node):
                constant = graph_module.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)
    for node in reversed(values):  # assertions too, which dead code elimination would keep
        if not node.users:
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return schema is not None and schema.is_mutable


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
