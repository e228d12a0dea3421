"""The dilated ResNet of PSPNet: output stride 8, deep stem 64-64-128.

He et al. 2016 (https://arxiv.org/abs/1512.03385) with the dilation of Yu et al. 2017
(https://arxiv.org/abs/1705.09914): stages 3 and 4 keep the resolution of stage 2, and every 3x3 convolution in them is
dilated by 2 and by 4, the first block's too. Names and shapes of the parameters for 50, 101 and 152 layers are those of
hszhao/semseg.

Residual blocks of any network recompute their activations in backward where that is wanted, for less memory and more
time. ``torch.utils.checkpoint`` runs a block's forward again; two things must not happen twice: batch normalisation
would count its batch's statistics again, and a convolution is what costs time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Norm = Literal["batch", "group"]
Recompute = Literal["none", "selective", "full"]
"""What backward computes again: nothing; normalisation, ReLU, sums and widening convolutions; or all of a block."""
RECOMPUTE: tuple[str, ...] = get_args(Recompute)
STAGES = ("layer0", "layer1", "layer2", "layer3", "layer4")

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.mkldnn_convolution.default)

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class Stages:
    """A backbone taken apart: its modules by attribute name, and the channels of the two maps that the heads read."""

    modules: dict[str, nn.Module]
    stage3_channels: int
    stage4_channels: int


def resnet_stages(layers: int, norm: Norm = "batch") -> Stages:
    """The stages ``layer0`` (stem) to ``layer4`` of a dilated ResNet with 18, 34, 50, 101 or 152 layers.

    Convolutions start from a normal distribution by fan-out (He et al. 2015), normalisations from weight 1 and bias 0.
    """
    if layers not in BLOCKS:
        raise ValueError(f"layers must be one of {', '.join(map(str, BLOCKS))}, not {layers!r}")
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock if layers < 50 else Bottleneck

    modules: dict[str, nn.Module] = {"layer0": _deep_stem(norm)}
    in_channels = 128
    widths, strides, dilations = (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4)
    for i, (count, width, stride, dilation) in enumerate(zip(BLOCKS[layers], widths, strides, dilations, strict=True)):
        stack: list[nn.Module] = [block(in_channels, width, stride, dilation, norm)]
        in_channels = width * block.expansion
        stack += [block(in_channels, width, 1, dilation, norm) for _ in range(count - 1)]
        modules[f"layer{i + 1}"] = nn.Sequential(*stack)

    for module in modules.values():
        module.apply(_initialise)
    return Stages(modules, stage3_channels=in_channels // 2, stage4_channels=in_channels)


def _deep_stem(norm: Norm) -> nn.Sequential:
    """Three 3x3 convolutions and a max-pooling: [B,3,H,W] -> [B,128,H/4,W/4]."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False), make_norm(norm, 64), nn.ReLU(inplace=True)),
        *(nn.Conv2d(64, 64, 3, padding=1, bias=False), make_norm(norm, 64), nn.ReLU(inplace=True)),
        *(nn.Conv2d(64, 128, 3, padding=1, bias=False), make_norm(norm, 128), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


class BasicBlock(nn.Module):
    """3x3, 3x3 and the shortcut. The stride is in conv1; both are dilated, as conv2 of :class:`Bottleneck` is."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = make_norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))

        out += shortcut
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut. The stride and the dilation are in conv2."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = make_norm(norm, width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = make_norm(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))

        out += shortcut
        return self.relu(out)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, make_norm(norm, out_channels))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer for ``channels`` channels.

    "batch" is ``nn.BatchNorm2d``. "group" is ``nn.GroupNorm`` with 32 groups (Wu and He 2018,
    https://arxiv.org/abs/1803.08494), or the largest power of two below that leaves every group the same number of
    channels and at least two: a group of one channel on the 1x1 level of the pyramid would hold a single value and
    normalise to zero.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        groups = math.gcd(32, channels)
        if groups == channels and groups % 2 == 0:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"norm must be 'batch' or 'group', not {norm!r}")


def run_stage(stage: nn.Module, x: Tensor, recompute: str) -> Tensor:
    """``stage(x)``, block by block under a checkpoint where gradients are wanted and ``recompute`` is not "none"."""
    if recompute == "none" or not torch.is_grad_enabled() or not isinstance(stage, nn.Sequential):
        return stage(x)
    for block in stage:
        x = checkpoint(
            block, x, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, block, recompute)
        )
    return x


def _contexts(block: nn.Module, recompute: str) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the first forward and for the second."""
    if recompute == "full":
        return nullcontext(), _statistics_kept(block, nullcontext())
    first, second = create_selective_checkpoint_contexts(_keep_convolutions)
    return first, _statistics_kept(block, second)


def _keep_convolutions(_: Any, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what a convolution computes, unless it has more channels than what it reads.

    In a bottleneck the last convolution, 1x1, writes two thirds of the memory with a quarter of the work.
    """
    kept = operator in _CONVOLUTIONS and args[1].shape[0] <= args[1].shape[1]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _statistics_kept(block: nn.Module, context: AbstractContextManager[Any]) -> Iterator[None]:
    """Give the normalisations copies of their buffers, which the second forward may change."""
    kept = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if module.training
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        with context:
            yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
