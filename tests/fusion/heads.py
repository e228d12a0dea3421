"""Small models with the heads that segmentation libraries have, written in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet_fast.fusion import FusionReport


class Plain(nn.Module):
    """A backbone of one convolution, and logits upsampled to the image's size."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.classifier = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x).relu()
        return F.interpolate(self.classifier(features), x.shape[2:], mode="bilinear", align_corners=False)


class Mixed(Plain):
    """Maps of three sizes, projected, concatenated and fused by a 1x1 convolution (SegFormer's head)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.projections = nn.ModuleList(nn.Linear(8, 10) for _ in range(3))
        self.fuse = nn.Conv2d(30, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        high = self.backbone(x).relu()
        maps = [high, *(F.avg_pool2d(high, k) for k in (2, 4))]
        ups = []
        for x_low, project in zip(maps[::-1], self.projections, strict=True):
            tokens = project(x_low.flatten(2).transpose(1, 2))
            low = tokens.permute(0, 2, 1).reshape(len(x), -1, *x_low.shape[2:])
            ups.append(F.interpolate(low, high.shape[2:], mode="bilinear", align_corners=False))
        fused = self.norm(self.fuse(torch.cat(ups, dim=1))).relu()
        return F.interpolate(self.classifier(fused), x.shape[2:], mode="bilinear", align_corners=False)


class Pyramid(Plain):
    """Pyramid pooling and a 3x3 convolution over the concatenation (PSPNet's head)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.levels = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(4))
        self.bottleneck = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x4 = self.backbone(x).relu()
        pooled = [conv(F.adaptive_avg_pool2d(x4, k)) for conv, k in zip(self.levels, (1, 2, 3, 6), strict=True)]
        ups = [F.interpolate(p, x4.shape[2:], mode="bilinear", align_corners=True) for p in pooled]
        fused = self.bottleneck(torch.cat([x4, *ups], dim=1)).relu()
        return F.interpolate(self.classifier(fused), x.shape[2:], mode="bilinear", align_corners=True)


class Levels(Plain):
    """Maps of three sizes, none of them square, concatenated and fused by a 3x3 convolution (UPerNet's fusion)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.fuse = nn.Conv2d(24, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.backbone(x).relu()
        maps = [F.avg_pool2d(high, k) for k in (2, 4)]
        ups = [F.interpolate(m, high.shape[2:], mode="bilinear", align_corners=False) for m in maps]
        fused = self.fuse(torch.cat([high, *ups], dim=1)).relu()
        return F.interpolate(self.classifier(fused), x.shape[2:], mode="bilinear", align_corners=False)


HEADS = (Plain, Mixed, Pyramid, Levels)


def fused_operators(model: nn.Module) -> list[tuple[str, str]]:
    """What an accelerated model has run as fused operators."""
    report: FusionReport = model.fusion_report  # type: ignore[assignment]
    return sorted((entry.operator, entry.reason) for entry in report if entry.fused)


def data(classes: int = 5, batch: int = 2, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """An image batch and its labels, some of them 255."""
    x = torch.randn(batch, 3, *size)
    target = torch.randint(0, classes, (batch, *size))
    target[:, :3] = 255
    return x, target
