"""What a PSPNet for inference alone is made of (:class:`pspnet_fast.nn.pspnet.OptimizedPSPNet`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from pspnet_fast.ops.pyramid_conv import pyramid_conv
from pspnet_fast.ops.pyramid_conv_norm_relu import fold_norm
from pspnet_fast.reference import Bin, NormStatistics

from .fused_conv import FusedConv2d, fuse_convolutions
from .fusibility import log_unfused
from .heads import PSPHead
from .norm import frozen_norm
from .pyramid import PyramidPooling


class PackedHead(nn.Module):
    """The head's first convolution, normalisation and ReLU on a CPU, with weights over the map in oneDNN's order.

    Otherwise these, most of the head's, are copied and reordered in every call. The convolution over the map adds the
    levels' terms, which are a convolution over the levels and channels of zeros.
    """

    def __init__(self, conv: nn.Conv2d, norm: NormStatistics, channels: int) -> None:
        super().__init__()
        weight, bias = fold_norm(conv.weight, conv.bias, norm)
        size: tuple[int, int] = conv.kernel_size  # type: ignore[assignment]
        padding = size[0] // 2, size[1] // 2
        # On no device: initial values would be drawn from the generator that a training under way draws from.
        over_map = nn.Conv2d(channels, conv.out_channels, size, padding=padding, bias=False, device="meta")
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


@torch.no_grad()
def packed_head(ppm: PyramidPooling, cls: PSPHead) -> PackedHead | None:
    """Of a pyramid and head that may run fused; None where what follows the convolution cannot be folded into it."""
    conv, norm, activation, *_ = cls
    frozen = frozen_norm(norm, activation)
    if frozen is None:
        return None
    assert isinstance(conv, nn.Conv2d)
    levels = sum(feature[1].out_channels for feature in ppm.features)  # type: ignore[index]
    return PackedHead(conv, frozen, conv.in_channels - levels)


def fuse_stages(net: nn.Module, reasons: set[str]) -> None:
    """Fuse the convolutions of the backbone's stages; ``reasons`` logs each stage that stays as it is once."""
    for name, stage in list(net.named_children()):
        if name not in ("layer0", "layer1", "layer2", "layer3", "layer4", "backbone"):
            continue
        try:
            fused = fuse_convolutions(stage)
        except Exception as error:  # whatever torch.fx cannot trace
            log_unfused(reasons, f"{name} cannot be traced: {type(error).__name__}: {error}")
        else:
            setattr(net, name, fused)


def arranged(x: Tensor) -> Tensor:
    """oneDNN's kernels in float32 are faster on NCHW, everything else on channels_last."""
    plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
    return x.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)


class InferenceOnly(nn.Module):
    """Refuses training and checkpoints."""

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
