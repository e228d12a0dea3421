"""The reduced graph of a segmentation model, in standard operators of PyTorch.

While the model is recorded, normalisation by fixed statistics is folded into the convolution in front of it; pooling
becomes products by small matrices; and a convolution over a map and the upsampled levels of its pyramid never sees the
concatenation (:mod:`pspnet_fast.ops.pyramid_conv_composed`). What depends on weights and fixed sizes alone is computed
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pspnet_fast import ops
from pspnet_fast.ops.pyramid_conv_composed import fold_norm
from pspnet_fast.ops.pyramid_pool import exported_pool
from pspnet_fast.reference import NormStatistics

_LARGEST_LEVEL = 8  # beyond, the terms of the levels are no longer small next to the convolution


class _Part(NamedTuple):
    """Some channels of a map: the map itself, or (``align_corners`` given) a level that was upsampled to its size."""

    tensor: Tensor
    align_corners: bool | None = None


class _Remembered:
    """What tensors were made from, as long as neither they nor their sources are written to."""

    def __init__(self) -> None:
        self._entries: list[tuple[Tensor, Any, list[tuple[Tensor, int]]]] = []

    def add(self, result: Tensor, origin: Any, sources: Sequence[Tensor]) -> None:
        self._entries.append((result, origin, [(tensor, tensor._version) for tensor in (result, *sources)]))

    def find(self, result: Tensor) -> Any:
        for tensor, origin, versions in reversed(self._entries):
            if tensor is result and all(t._version == version for t, version in versions):
                return origin
        return None


class Reduce(TorchFunctionMode):
    """The mode in which a model in evaluation mode is recorded: it replaces calls by cheaper ones of the same value."""

    def __init__(self) -> None:
        super().__init__()
        self._maps = _Remembered()
        self._convolutions = _Remembered()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        replace = _REPLACED.get(func)
        if replace is None:
            return func(*args, **(kwargs or {}))
        return replace(self, *args, **(kwargs or {}))

    def batch_norm(
        self,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        convolution = self._convolutions.find(input)
        if training or convolution is None or mean is None or var is None:
            return F.batch_norm(input, mean, var, weight, bias, training, momentum, eps)
        norm = NormStatistics(
            mean, var, torch.ones_like(var) if weight is None else weight, 0 * mean if bias is None else bias, eps
        )
        x, kernel, offset, *options = convolution
        return self.conv2d(x, *fold_norm(kernel, offset, norm), *options)

    def adaptive_avg_pool2d(self, input: Tensor, output_size: Any) -> Tensor:
        size = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
        if input.dim() != 4 or None in size or size == (1, 1) or not input.is_floating_point():
            return F.adaptive_avg_pool2d(input, output_size)
        return exported_pool(input, [size])[0]

    def interpolate(
        self,
        input: Tensor,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        *options: Any,
        **more: Any,
    ) -> Tensor:
        y = F.interpolate(input, size, scale_factor, mode, align_corners, *options, **more)
        height, width = input.shape[-2:]
        level = all(isinstance(n, int) and n <= _LARGEST_LEVEL for n in (height, width))
        if level and mode == "bilinear" and scale_factor is None and not any(options) and not more.get("antialias"):
            self._maps.add(y, [_Part(input, bool(align_corners))], [input])
        return y

    def cat(self, tensors: Any, dim: int = 0, **keywords: Any) -> Tensor:
        y = torch.cat(tensors, dim, **keywords)
        parts = [part for x in tensors for part in self._parts(x)]
        if dim in (1, -3) and y.dim() == 4 and any(part.align_corners is not None for part in parts):
            self._maps.add(y, parts, [part.tensor for part in parts])
        return y

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        kernel = tuple(weight.shape[2:])
        same = padding == "same" or _pair(padding) == (kernel[0] // 2, kernel[1] // 2)
        plain = same and kernel[0] % 2 == kernel[1] % 2 == 1 and _pair(stride) == _pair(dilation) == (1, 1)
        pyramid = _pyramid(self._parts(input)) if plain and groups == 1 else None
        if pyramid is None:
            y = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        else:
            x, levels, options = pyramid
            y = ops.pyramid_conv(x, levels, weight, bias, **options)
        self._convolutions.add(y, (input, weight, bias, stride, padding, dilation, groups), [input])
        return y

    def _parts(self, x: Tensor) -> list[_Part]:
        return self._maps.find(x) or [_Part(x)]


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: Reduce.batch_norm,
    F.adaptive_avg_pool2d: Reduce.adaptive_avg_pool2d,
    F.interpolate: Reduce.interpolate,
    torch.cat: Reduce.cat,
    torch.conv2d: Reduce.conv2d,
}


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)


def _pyramid(parts: list[_Part]) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
    """``x``, packed levels and options for ``pyramid_conv``, where it takes these parts."""
    dense = [part.tensor for part in parts if part.align_corners is None]
    levels = [part for part in parts if part.align_corners is not None]
    order = [part.align_corners is None for part in parts]
    alike = len({(part.tensor.shape[1], part.align_corners) for part in levels}) == 1
    if not dense or not alike or order not in (sorted(order), sorted(order, reverse=True)):
        return None
    x = dense[0] if len(dense) == 1 else torch.cat(dense, dim=1)
    options = {
        "bins": [tuple(part.tensor.shape[2:]) for part in levels],
        "align_corners": levels[0].align_corners,
        "x_first": order[0],
    }
    return x, torch.cat([part.tensor.flatten(2) for part in levels], dim=2), options


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
            values[node] = attrgetter(str(node.target))(graph_module)
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
