"""PSPNet as everybody writes it: a chain of stock PyTorch operators.

The oracle of the tests and the peer of the benchmarks. It shares no code with ``pspnet_fast`` on purpose, and imports
nothing but torch. Parameter names are those of hszhao/semseg, so state dicts go both ways.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class PlainBlock(nn.Module):
    """Residual block: two 3x3 convolutions (18, 34 layers) or 1x1, 3x3, 1x1 (50 and more)."""

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, bottleneck: bool) -> None:
        super().__init__()
        out_channels = width * 4 if bottleneck else width
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, stride, dilation, dilation, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.bottleneck:
            x = self.bn3(self.conv3(self.relu(x)))
        return self.relu(x + shortcut)


class PlainPyramid(nn.Module):
    """Pool, 1x1 conv, BN, ReLU, upsample for each level; concatenate behind the input."""

    def __init__(self, in_channels: int, level_channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(k),
                nn.Conv2d(in_channels, level_channels, 1, bias=False),
                nn.BatchNorm2d(level_channels),
                nn.ReLU(inplace=True),
            )
            for k in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        upsampled = [F.interpolate(level(x), size, mode="bilinear", align_corners=True) for level in self.features]
        return torch.cat([x, *upsampled], dim=1)


def plain_head(in_channels: int, width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, classes, 1),
    )


class PlainPSPNet(nn.Module):
    """Training: ``(arg-max, main loss, auxiliary loss)``; evaluation: logits at (H-1)·zoom/8 + 1."""

    def __init__(
        self,
        layers: int = 50,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        classes: int = 2,
        zoom_factor: int = 8,
        use_ppm: bool = True,
        criterion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.zoom_factor = zoom_factor
        self.use_ppm = use_ppm
        self.criterion = nn.CrossEntropyLoss(ignore_index=255) if criterion is None else criterion

        stem: list[nn.Module] = []
        for in_channels, out_channels, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
            stem += [nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels)]
            stem += [nn.ReLU(inplace=True)]
        self.layer0 = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))

        bottleneck = layers >= 50
        channels = 128
        for stage, (blocks, width, stride, dilation) in enumerate(
            zip(BLOCKS[layers], (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True), start=1
        ):
            stack = []
            for index in range(blocks):
                stack.append(PlainBlock(channels, width, stride if index == 0 else 1, dilation, bottleneck))
                channels = width * 4 if bottleneck else width
            self.add_module(f"layer{stage}", nn.Sequential(*stack))

        if use_ppm:
            self.ppm = PlainPyramid(channels, channels // len(bins), bins)
        self.cls = plain_head(channels * (2 if use_ppm else 1), channels // 4, classes, dropout)
        self.aux = plain_head(channels // 2, channels // 8, classes, dropout)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        size = [(n - 1) * self.zoom_factor // 8 + 1 for n in x.shape[2:]]
        x = self.layer2(self.layer1(self.layer0(x)))
        stage3 = self.layer3(x)
        x = self.layer4(stage3)
        if self.use_ppm:
            x = self.ppm(x)
        logits = F.interpolate(self.cls(x), size, mode="bilinear", align_corners=True)
        if not self.training:
            return logits

        aux_logits = F.interpolate(self.aux(stage3), size, mode="bilinear", align_corners=True)
        return logits.argmax(1), self.criterion(logits, y), self.criterion(aux_logits, y)
