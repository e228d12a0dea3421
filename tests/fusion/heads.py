"""Small models with the heads that segmentation libraries have, in plain PyTorch, and steps of their training."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspnet_fast


class Plain(nn.Module):
    """A backbone of one convolution, and logits upsampled to the image's size."""

    align_corners = False

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.classifier = nn.Conv2d(8, classes, 1)

    def enlarge(self, x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)

    def decode(self, high: Tensor) -> Tensor:
        return high

    def forward(self, x: Tensor) -> Tensor:
        features = self.decode(self.backbone(x).relu())
        return self.enlarge(self.classifier(features), x.shape[2:])


class Mixed(Plain):
    """Maps of three sizes, projected, concatenated and fused by a 1x1 convolution (SegFormer's head)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.projections = nn.ModuleList(nn.Linear(8, 10) for _ in range(3))
        self.fuse = nn.Conv2d(30, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def decode(self, high: Tensor) -> Tensor:
        maps = [high, *(F.avg_pool2d(high, k) for k in (2, 4))]
        ups = []
        for x_low, project in zip(maps[::-1], self.projections, strict=True):
            tokens = project(x_low.flatten(2).transpose(1, 2))
            low = tokens.permute(0, 2, 1).reshape(len(high), -1, *x_low.shape[2:])
            ups.append(self.enlarge(low, high.shape[2:]))
        return self.norm(self.fuse(torch.cat(ups, dim=1))).relu()


class Pyramid(Plain):
    """Pyramid pooling and a 3x3 convolution over the concatenation (PSPNet's head)."""

    align_corners = True

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.levels = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(4))
        self.bottleneck = nn.Conv2d(16, 8, 3, padding=1)

    def decode(self, high: Tensor) -> Tensor:
        pooled = [conv(F.adaptive_avg_pool2d(high, k)) for conv, k in zip(self.levels, (1, 2, 3, 6), strict=True)]
        ups = [self.enlarge(p, high.shape[2:]) for p in pooled]
        return self.bottleneck(torch.cat([high, *ups], dim=1)).relu()


class Levels(Plain):
    """Maps of three sizes, none of them square, concatenated and fused by a 3x3 convolution (UPerNet's fusion)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.fuse = nn.Conv2d(24, 8, 3, padding=1)

    def decode(self, high: Tensor) -> Tensor:
        ups = [self.enlarge(F.avg_pool2d(high, k), high.shape[2:]) for k in (2, 4)]
        return self.fuse(torch.cat([high, *ups], dim=1)).relu()


HEADS = (Plain, Mixed, Pyramid, Levels)


def fused_operators(model: nn.Module) -> list[tuple[str, str]]:
    """What an accelerated model has run as fused operators."""
    return sorted((entry.operator, entry.reason) for entry in model.fusion_report() if entry.fused)


def data(classes: int = 5, batch: int = 2, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """An image batch and its labels, some of them 255."""
    x = torch.randn(batch, 3, *size)
    target = torch.randint(0, classes, (batch, *size))
    target[:, :3] = 255
    return x, target


def accelerated(model):
    """A copy."""
    return pspnet_fast.accelerate(copy.deepcopy(model))


def training_step(model, x, target, compute=None):
    """The loss ``compute(x, target)``, or that of the model's logits, and the gradients by name."""
    model.zero_grad()
    loss = F.cross_entropy(model(x), target, ignore_index=255) if compute is None else compute(x, target)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_results(model, run, **tolerance):
    """``run(model)`` and that of an accelerated copy, which is returned."""
    ours = accelerated(model)
    expected = run(model)
    torch.testing.assert_close(run(ours), expected, **tolerance)
    return ours
