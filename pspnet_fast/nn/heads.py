"""The pyramid pooling module and the heads of PSPNet (Zhao et al. 2017, https://arxiv.org/abs/1612.01105)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pspnet_fast.ops.pyramid_concat import pyramid_concat
from pspnet_fast.ops.pyramid_conv import pyramid_conv, pyramid_conv_norm_relu
from pspnet_fast.ops.pyramid_pool import pyramid_levels, pyramid_pool, pyramid_pool_through
from pspnet_fast.reference import NormStatistics, unpack_levels

from .fusibility import changed_reason, frozen_norm, global_hook_reason, log_unfused
from .resnet import Norm, make_norm


class PyramidPooling(nn.Module):
    """Adaptive average pooling to every size of ``bins``, 1x1 convolution, normalisation and ReLU at each.

    Args:
        in_channels: C, the channels of the input.
        reduction_channels: Ck, the channels of each level.
        bins: k for each level, in the order of the concatenation.
        norm: "batch" or "group".

    ``features[i]`` is a Sequential of pooling, convolution, normalisation and ReLU. All levels are pooled in one pass
    over the input; the modules behind the pooling are called, so they may be hooked, and replaced
    (``convert_sync_batchnorm``) at any time. Where a level was changed so that one pass cannot serve it, every level
    runs on its own.
    """

    def __init__(
        self, in_channels: int, reduction_channels: int, bins: Sequence[int] = (1, 2, 3, 6), norm: Norm = "batch"
    ) -> None:
        super().__init__()
        if not bins or any(not isinstance(k, int) or k < 1 for k in bins):
            raise ValueError(f"bins must be at least one positive integer, not {bins!r}")
        self.bins = tuple(bins)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(k),
                nn.Conv2d(in_channels, reduction_channels, 1, bias=False),
                make_norm(norm, reduction_channels),
                nn.ReLU(inplace=True),
            )
            for k in self.bins
        )
        self._unfused_reasons: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]`` and its levels, upsampled and concatenated: [B, C + L·Ck, H, W].

        Raises:
            ValueError: one image, and a 1x1 level with batch normalisation in training mode.
        """
        self.check_batch(x.shape[0])
        reason = self.unfusable_reason()
        if reason is None:
            return pyramid_concat(x, self._transform(pyramid_pool(x, self.bins)), bins=self.bins)

        log_unfused(self._unfused_reasons, reason)
        size = x.shape[-2:]
        levels = [F.interpolate(f(x), size, mode="bilinear", align_corners=True) for f in self.features]
        return torch.cat([x, *levels], dim=1)

    def forward_levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, C, H, W]`` to go on with, and its levels before upsampling, packed [B, Ck, Σk²]."""
        frozen = self._frozen_levels()
        if frozen is not None:
            return x, pyramid_levels(x, *frozen, self.bins)
        x, pooled = pyramid_pool_through(x, self.bins)
        return x, self._transform(pooled)

    def _transform(self, pooled: Tensor) -> Tensor:
        """Every level's own modules behind the pooling, called one after the other."""
        levels = []
        for feature, level in zip(self.features, unpack_levels(pooled, self.bins), strict=True):
            for module in list(cast(nn.Sequential, feature))[1:]:
                level = module(level)
            levels.append(level.flatten(2))
        return torch.cat(levels, dim=2)

    def _frozen_levels(self) -> tuple[list[Tensor], list[NormStatistics]] | None:
        """Weights and statistics of the levels where inference may run them as one, else None."""
        weights: list[Tensor] = []
        norms: list[NormStatistics] = []
        for feature in self.features:
            modules = list(cast(nn.Sequential, feature))[1:]
            if len(modules) != 3 or changed_reason("conv", modules[0], nn.Conv2d) or modules[0].bias is not None:
                return None
            norm = frozen_norm(*modules[1:])
            if norm is None:
                return None
            weights.append(cast(Tensor, modules[0].weight))
            norms.append(norm)
        return weights, norms

    def unfusable_reason(self) -> str | None:
        """Why the levels cannot be pooled in one pass (one was replaced, hooked or given another pooling), or None."""
        if reason := global_hook_reason():
            return reason
        if len(self.features) != len(self.bins):
            return f"ppm has {len(self.features)} levels, not {len(self.bins)}"
        widths = set()
        for i, (feature, k) in enumerate(zip(self.features, self.bins, strict=True)):
            name = f"ppm.features.{i}"
            if reason := changed_reason(name, feature, nn.Sequential):
                return reason
            pool, conv = [*cast(nn.Sequential, feature), None, None][:2]
            if not isinstance(pool, nn.AdaptiveAvgPool2d) or not isinstance(conv, nn.Conv2d):
                return f"{name} does not begin with a pooling and a convolution"
            if reason := changed_reason(f"{name}.0", pool, nn.AdaptiveAvgPool2d):
                return reason
            if pool.output_size not in (k, (k, k)):
                return f"{name}.0 pools to {pool.output_size}, not {k}"
            if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.padding not in ((0, 0), "valid", "same"):
                return f"{name}.1 is not a 1x1 convolution"
            widths.add(conv.out_channels)
        return None if len(widths) == 1 else f"the levels differ in channels: {sorted(widths)}"

    def check_batch(self, batch: int) -> None:
        """Raise ValueError where batch normalisation would see a single value: at the 1x1 level of one image."""
        if batch != 1:
            return
        for feature, k in zip(self.features, self.bins, strict=False):
            if k == 1 and any(_needs_two_values(module) for module in feature.modules()):
                raise ValueError(
                    "a batch of 1 image cannot train the 1x1 level of the pyramid: batch normalisation has a single "
                    "value per channel there. Use a batch of at least 2 (drop_last=True in the data loader), "
                    "norm='group', SyncBatchNorm over several processes, or freeze the statistics: model.ppm.eval()."
                )


def _needs_two_values(module: nn.Module) -> bool:
    """Whether ``module`` normalises by the statistics of this process's batch alone."""
    if not isinstance(module, _BatchNorm) or not (module.training or module.running_mean is None):
        return False
    if isinstance(module, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        return dist.get_world_size(module.process_group) < 2
    return True


class _Head(nn.Sequential):
    """3x3 convolution, normalisation, ReLU, Dropout2d, 1x1 convolution to classes."""

    def __init__(
        self, in_channels: int, hidden_channels: int, classes: int, dropout: float = 0.1, norm: Norm = "batch"
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1, bias=False),
            make_norm(norm, hidden_channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(hidden_channels, classes, 1),
        )

    def __getitem__(self, index: Any) -> Any:
        # nn.Sequential makes a slice by calling its own class with an OrderedDict, which is not this class's signature.
        if isinstance(index, slice):
            return nn.Sequential(*list(self)[index])
        return super().__getitem__(index)


class AuxHead(_Head):
    """The auxiliary head: ``x [B, C, H, W]`` of stage 3 -> logits [B, classes, H, W].

    Args: in_channels, hidden_channels, classes, dropout (probability of dropping a channel), norm ("batch" or "group").
    """


class PSPHead(_Head):
    """The main head: the concatenation of a map and its pyramid levels -> logits [B, classes, H, W].

    Given the map and its packed levels instead of the concatenation, the first convolution runs fused
    (:func:`pspnet_fast.pyramid_conv`), and the concatenation is never built; in evaluation mode without gradients the
    normalisation and ReLU behind it are part of that.

    Args: in_channels (of the concatenation: C + L·Ck), hidden_channels, classes, dropout, norm ("batch" or "group").
    """

    def forward(self, x: Tensor, levels: Tensor | None = None, bins: Sequence[int] = (1, 2, 3, 6)) -> Tensor:
        """Logits of the concatenation ``x [B, C + L·Ck, H, W]``, or of ``x [B, C, H, W]`` and levels [B, Ck, Σk²]."""
        if levels is None:
            return super().forward(x)

        conv, norm, activation, *rest = self
        assert isinstance(conv, nn.Conv2d)
        frozen = frozen_norm(norm, activation)
        if frozen is not None:
            x = pyramid_conv_norm_relu(x, levels, conv.weight, frozen, conv.bias, bins=bins)
        else:
            x = pyramid_conv(x, levels, conv.weight, conv.bias, bins=bins)
            rest = [norm, activation, *rest]
        for module in rest:
            x = module(x)
        return x


def unfusable_reason(ppm: nn.Module, cls: nn.Module) -> str | None:
    """Why ``cls(ppm(x))`` has to run unfused, or None where its first convolution may run fused with the pyramid.

    A module that fusion would skip (``ppm``, its poolings, ``cls``, ``cls[0]``) was replaced, hooked or parametrised,
    or ``cls[0]`` is not a 1x1 or 3x3 convolution with zero padding that keeps the size.
    """
    reason = (
        global_hook_reason()
        or changed_reason("ppm", ppm, PyramidPooling)
        or changed_reason("cls", cls, PSPHead)
        or changed_reason("cls.0", cls[0], nn.Conv2d)  # type: ignore[index]  # a PSPHead by the line above
    )
    if reason is not None:
        return reason

    assert isinstance(ppm, PyramidPooling)
    assert isinstance(cls, PSPHead)
    conv = cls[0]
    same = conv.padding == "same" or conv.padding == (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    if conv.kernel_size not in ((1, 1), (3, 3)) or not same or not plain:
        return f"cls.0 is not a 1x1 or 3x3 convolution that keeps the size: {conv}"
    return ppm.unfusable_reason()
