"""A PSPNet for inference alone: convolutions with everything behind them (batch normalisation, a sum, ReLU) as one."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pspnet_fast.ops.pyramid_conv import pyramid_conv
from pspnet_fast.ops.pyramid_conv_composed import fold_norm
from pspnet_fast.reference import Bin, NormStatistics

from .fusibility import changed_reason, frozen_norm, log_unfused
from .heads import unfusable_reason
from .resnet import STAGES

_ADD = (operator.add, operator.iadd, torch.add)
_RELU = (F.relu, torch.relu)


class FusedConv2d(nn.Module):
    """``relu(norm(conv(x)) + other)`` by one kernel: of oneDNN on a CPU, of cuDNN on CUDA; without gradients.

    Args:
        conv: with zero padding.
        norm: a batch normalisation in evaluation mode with statistics, folded into the weights; or None.
        relu: whether ReLU is applied at the end.
        in_place: whether ``other`` may be overwritten by the result.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool, in_place: bool = False) -> None:
        super().__init__()
        folded = conv if norm is None else fuse_conv_bn_eval(conv, norm)
        bias = folded.weight.new_zeros(folded.out_channels) if folded.bias is None else folded.bias
        self.register_buffer("weight", folded.weight.detach(), persistent=False)
        self.register_buffer("bias", bias.detach(), persistent=False)
        self.padding, self.stride, self.dilation = (
            [int(n) for n in values] for values in (conv.padding, conv.stride, conv.dilation)
        )
        self.groups, self.relu, self.in_place = conv.groups, relu, in_place
        self.packed: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # weights as oneDNN orders them, and the bias

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """``x [N, C, H, W]`` and ``other``, of the result's shape -> [N, O, H', W']."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.numel() == 0:
            return self._composed(x, other)  # the compiler fuses by itself
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.enabled:
            return self._by_onednn(x, other)
        if x.device.type == "cuda" and self.relu and torch.backends.cudnn.is_acceptable(x):
            return self._by_cudnn(x, other)
        return self._composed(x, other)

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        if x.dtype not in self.packed:
            weight = self.weight.to(x.dtype).to_mkldnn()
            geometry = self.padding, self.stride, self.dilation, self.groups
            weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *geometry, list(x.shape))  # type: ignore[call-arg]
            self.packed[x.dtype] = weight, self.bias.to(x.dtype)
        arguments = (*self.packed[x.dtype], self.padding, self.stride, self.dilation, self.groups)
        relu = "relu" if self.relu else None
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *arguments, relu or "none", [], None)
        fused = torch.ops.mkldnn._convolution_pointwise_ if self.in_place else torch.ops.mkldnn._convolution_pointwise
        pair = (other, x) if self.in_place else (x, other)
        return fused.binary(*pair, *arguments, "add", 1.0, relu, [], None)

    def _by_cudnn(self, x: Tensor, other: Tensor | None) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        geometry = self.stride, self.padding, self.dilation, self.groups
        if other is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *geometry)

    def _composed(self, x: Tensor, other: Tensor | None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if other is None else y + other
        return F.relu(y) if self.relu else y

    def _apply(self, *arguments: Any, **options: Any) -> FusedConv2d:
        self.packed = {}
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": {}}  # oneDNN's tensors cannot be copied


class _LocalTracer(fx.Tracer):
    """Traces a module of one argument, and touches nothing but that module.

    ``fx.Tracer.trace`` replaces ``nn.Module.__call__`` for the whole process: what other threads run meanwhile enters
    the graph or fails, and after two traces at once the replacement stays.
    """

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        self.root, self.graph, self.tensor_attrs = root, fx.Graph(), {}
        leaves = {m: name for name, m in root.named_modules() if name and self.is_leaf_module(m, name)}
        kinds = {leaf: type(leaf) for leaf in leaves}
        try:
            for leaf, name in leaves.items():
                leaf.__class__ = self._recorded(kinds[leaf], name)
            x = self.create_proxy("placeholder", "x", (), {})
            self.create_node("output", "output", (self.create_arg(root.forward(x)),), {})
        finally:
            for leaf, kind in kinds.items():
                leaf.__class__ = kind
        return self.graph

    def _recorded(self, kind: type[nn.Module], name: str) -> type[nn.Module]:
        """A subclass whose calls become nodes of the graph."""

        def call(_: nn.Module, *args: Any, **kwargs: Any) -> fx.Proxy:
            return self.create_proxy("call_module", name, args, kwargs)

        return type(kind.__name__, (kind,), {"__call__": call})


def fuse_convolutions(module: nn.Module) -> nn.Module:
    """``module`` with every convolution and what follows it as one :class:`FusedConv2d`.

    Args:
        module: of one argument, which nothing else runs meanwhile. It is not changed.

    Raises:
        Exception: torch.fx cannot trace it, with whatever error it has for that.
    """
    traced = fx.GraphModule(module, _LocalTracer().trace(module), type(module).__name__)
    modules = dict(traced.named_modules())
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or changed_reason("", conv, nn.Conv2d):
            continue
        if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            _fuse(traced, modules, order, node, conv)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _fuse(
    traced: fx.GraphModule, modules: dict[str, nn.Module], order: dict[fx.Node, int], node: fx.Node, conv: nn.Conv2d
) -> None:
    last, other = node, None
    norm = _following(last, modules, nn.BatchNorm2d)
    statistics = modules[str(norm.target)] if norm is not None else None
    if norm is not None and isinstance(statistics, nn.BatchNorm2d) and statistics.running_mean is not None:
        last = norm
    else:
        statistics = None
    in_place = False
    user = _only_user(last)
    if user is not None and user.op == "call_function" and user.target in _ADD and len(user.args) == 2:
        (added,) = [a for a in user.args if a is not last] or [None]
        # What is added must be there when the convolution runs.
        if isinstance(added, fx.Node) and order[added] < order[node] and not user.kwargs:
            other, last = added, user
            # Other modules may hand on what they were given: the caller's input, or a map that is read again.
            new_memory = isinstance(modules.get(str(added.target)), FusedConv2d)
            in_place = new_memory and all(order[u] <= order[user] for u in added.users)
    relu = _following(last, modules, nn.ReLU)
    last = last if relu is None else relu

    name = f"fused_{order[node]}"
    fused = FusedConv2d(conv, statistics, relu is not None, in_place)
    modules[name] = fused
    traced.add_submodule(name, fused)
    with traced.graph.inserting_before(last):
        new = traced.graph.call_module(name, (node.args[0],) if other is None else (node.args[0], other))
    order[new] = order[last]
    last.replace_all_uses_with(new)
    for gone in (relu, user if other is not None else None, norm if statistics is not None else None, node):
        if gone is not None:  # from the last to the first, so that nothing is read any more
            traced.graph.erase_node(gone)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _following(node: fx.Node, modules: dict[str, nn.Module], kind: type[nn.Module]) -> fx.Node | None:
    """What alone reads ``node``, if that is a module of this very type, or ReLU as a function."""
    user = _only_user(node)
    if user is None:
        return None
    if user.op == "call_function" and user.target in _RELU and kind is nn.ReLU:
        return user
    if user.op != "call_module" or changed_reason("", modules[str(user.target)], kind):
        return None
    return user


class PackedHead(nn.Module):
    """The head's first convolution, normalisation and ReLU on a CPU, with weights over the map in oneDNN's order.

    Otherwise these, most of the head's, are copied and reordered in every call. The convolution over the map adds the
    levels' terms, which are a convolution over the levels and channels of zeros.
    """

    def __init__(self, conv: nn.Conv2d, norm: NormStatistics, channels: int) -> None:
        super().__init__()
        weight, bias = fold_norm(conv.weight, conv.bias, norm)
        # On no device: initial values would be drawn from the generator that a training under way draws from.
        options: dict[str, Any] = {"padding": [n // 2 for n in conv.kernel_size], "bias": False, "device": "meta"}
        over_map = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, **options)  # type: ignore[arg-type]
        over_map.weight = nn.Parameter(weight[:, :channels].contiguous(), requires_grad=False)
        self.over_map = FusedConv2d(over_map, None, relu=True, in_place=True)
        # Two channels, as the layout of one is ambiguous.
        self.register_buffer("weight", torch.cat([0 * weight[:, :2], weight[:, channels:]], 1), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor, levels: Tensor, bins: Sequence[Bin]) -> Tensor:
        """``x [B, C, H, W]`` and levels [B, Ck, Σk²] -> [B, O, H, W]."""
        return self.over_map(x, pyramid_conv(torch.zeros_like(x[:, :2]), levels, self.weight, self.bias, bins=bins))


class ForInference(nn.Module):
    """What OptimizedPSPNet (pspnet.py) does otherwise than PSPNet, the class behind this one."""

    ppm: Any
    cls: Any
    use_ppm: bool
    _unfused_reasons: set[str]

    @torch.no_grad()
    def __init__(self, net: nn.Module) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(net).eval().__dict__)
        del self.aux
        self.requires_grad_(False)
        for name in [name for name, _ in self.named_children() if name in (*STAGES, "backbone")]:
            try:
                setattr(self, name, fuse_convolutions(self.get_submodule(name)))
            except Exception as error:  # whatever torch.fx cannot trace
                reason = f"{name} cannot be traced: {type(error).__name__}: {error}"
                log_unfused(self._unfused_reasons, reason)
        self.packed_head = None
        if self.use_ppm and not unfusable_reason(self.ppm, self.cls):
            conv, norm, activation, *_ = self.cls
            statistics = frozen_norm(norm, activation)
            if statistics is not None and isinstance(conv, nn.Conv2d):
                levels = sum(feature[1].out_channels for feature in self.ppm.features)
                self.packed_head = PackedHead(conv, statistics, conv.in_channels - levels)

    def _main_logits(self, stage4: Tensor) -> Tensor:
        if self.packed_head is None or stage4.device.type != "cpu" or unfusable_reason(self.ppm, self.cls):
            return super()._main_logits(stage4)  # type: ignore[misc]
        x: Tensor = self.packed_head(*self.ppm.forward_levels(stage4), self.ppm.bins)
        for module in list(self.cls)[3:]:
            x = module(x)
        return x

    @torch.no_grad()
    def low_resolution_logits(self, x: Tensor) -> Tensor:
        # oneDNN's kernels in float32 are faster on NCHW, everything else on channels_last.
        plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
        layout = torch.contiguous_format if plain else torch.channels_last
        return super().low_resolution_logits(x.contiguous(memory_format=layout))  # type: ignore[misc]

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise RuntimeError("this PSPNet is optimized for inference; train the one that it was made from")
        return super().train(False)

    def state_dict(self, *arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError("this PSPNet is optimized for inference, and no checkpoint; save the one it was made from")

    def load_state_dict(self, *arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError("this PSPNet is optimized for inference; load the weights into a PSPNet and optimize that")

    def optimize_for_inference(self) -> Self:
        return self
