"""Labels as colours: maps, overlays, and the panels that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pspnet_fast.data import DatasetInfo


def colorize(labels: Tensor, info: DatasetInfo) -> Tensor:
    """uint8 [H, W, 3] in the data set's palette from integer ``labels`` [H, W]; what is no class becomes black."""
    table = torch.zeros(256, 3, dtype=torch.uint8)
    table[: info.num_classes] = torch.tensor(info.palette, dtype=torch.uint8)
    return table[labels.long().cpu()]


def overlay(image: Tensor, colors: Tensor, opacity: float = 0.5) -> Tensor:
    """Blend uint8 ``image`` [3, H, W] and ``colors`` [H, W, 3] into uint8 [H, W, 3]."""
    return torch.lerp(image.permute(1, 2, 0).cpu().float(), colors.float(), opacity).round().to(torch.uint8)


def panel(
    image: Tensor, label: Tensor, prediction: Tensor, info: DatasetInfo, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Input, label and prediction side by side: uint8 [H, 3·W, 3] from a normalised ``image`` float32 [3, H, W]."""
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    picture = (image.cpu() * scale + shift).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return torch.cat([picture, colorize(label, info), colorize(prediction, info)], dim=1)
