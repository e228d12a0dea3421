"""A PSPNet for inference alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .fused_conv import fuse_convolutions
from .fusibility import log_unfused
from .pspnet import PSPNet


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
