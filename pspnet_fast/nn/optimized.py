"""A PSPNet for inference alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pspnet_fast.ops.pyramid_conv import pyramid_conv
from pspnet_fast.ops.pyramid_conv_norm_relu import fold_norm
from pspnet_fast.reference import Bin, NormStatistics

from .fused_conv import FusedConv2d, fuse_convolutions
from .fusibility import log_unfused
from .heads import unfusable_reason
from .norm import frozen_norm
from .pspnet import PSPNet


class _PackedHead(nn.Module):
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


class OptimizedPSPNet(PSPNet):
    """The same function as ``net`` in evaluation mode, faster; made by :meth:`PSPNet.optimize_for_inference`.

    Batch normalisation is folded into the convolutions of the backbone, each convolution is one kernel with the sum
    and ReLU behind it, and on a CPU its weights are kept in oneDNN's order, for every precision that is used. The
    auxiliary head is left out. It is a copy: later changes of ``net`` do not reach it.

    It has no gradients, cannot be trained, and has no ``state_dict``: save ``net``.
    """

    def __init__(self, net: PSPNet) -> None:
        torch.nn.Module.__init__(self)
        own = copy.deepcopy(net).eval()
        self.__dict__.update(own.__dict__)
        del self.aux
        self.requires_grad_(False)
        for name, stage in list(self.named_children()):
            if name not in ("layer0", "layer1", "layer2", "layer3", "layer4", "backbone"):
                continue
            try:
                fused = fuse_convolutions(stage)
            except Exception as error:  # whatever torch.fx cannot trace
                log_unfused(self._unfused_reasons, f"{name} cannot be traced: {type(error).__name__}: {error}")
            else:
                setattr(self, name, fused)
        self.packed_head = self._pack_head()

    @torch.no_grad()
    def _pack_head(self) -> _PackedHead | None:
        if not self.use_ppm or unfusable_reason(self.ppm, self.cls):
            return None
        conv, norm, activation, *_ = self.cls
        frozen = frozen_norm(norm, activation)
        levels = sum(feature[1].out_channels for feature in self.ppm.features)  # type: ignore[index]
        if frozen is None:
            return None
        return _PackedHead(conv, frozen, conv.in_channels - levels)  # type: ignore[arg-type,operator]

    def _main_logits(self, stage4: Tensor) -> Tensor:
        if self.packed_head is None or stage4.device.type != "cpu" or unfusable_reason(self.ppm, self.cls):
            return super()._main_logits(stage4)
        x: Tensor = self.packed_head(*self.ppm.forward_levels(stage4), self.ppm.bins)
        for module in list(self.cls)[3:]:
            x = module(x)
        return x

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Logits [N, classes, h, w], as :meth:`PSPNet.forward` in evaluation mode."""
        return super().forward(x, y)

    @torch.no_grad()
    def low_resolution_logits(self, x: Tensor) -> Tensor:
        return super().low_resolution_logits(self._arranged(x))

    @torch.no_grad()
    def predict(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        return super().predict(x, size)

    def train(self, mode: bool = True) -> OptimizedPSPNet:
        if mode:
            raise RuntimeError("this PSPNet is optimized for inference; train the one that it was made from")
        super().train(False)
        return self

    def state_dict(self, *arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError("this PSPNet is optimized for inference, and no checkpoint; save the one it was made from")

    def load_state_dict(self, *arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError("this PSPNet is optimized for inference; load the weights into a PSPNet and optimize that")

    def optimize_for_inference(self) -> OptimizedPSPNet:
        return self

    @staticmethod
    def _arranged(x: Tensor) -> Tensor:
        """oneDNN's kernels in float32 are faster on NCHW, everything else on channels_last."""
        plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
        return x.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)
