"""The main and the auxiliary head of PSPNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pspnet_fast.ops.pyramid_conv import pyramid_conv
from pspnet_fast.ops.pyramid_conv_norm_relu import pyramid_conv_norm_relu

from .fusibility import changed_reason, global_hook_reason
from .norm import Norm, frozen_norm, make_norm
from .pyramid import PyramidPooling


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
