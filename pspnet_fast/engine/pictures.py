"""Labels as colours: maps, overlays, and the panels that TensorBoard shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from pspnet_fast.data import DatasetInfo

from .config import TrainConfig
from .inference import autocast, predict_labels


def colorize(labels: Tensor, info: DatasetInfo) -> Tensor:
    """uint8 [H, W, 3] in the data set's palette from integer ``labels`` [H, W]; what is no class becomes black."""
    table = np.zeros((256, 3), np.uint8)
    table[: info.num_classes] = info.palette
    return torch.from_numpy(table[labels.cpu().numpy()])


def overlay(image: Tensor, colors: Tensor, opacity: float = 0.5) -> Tensor:
    """Blend uint8 ``image`` [3, H, W] and ``colors`` [H, W, 3] into uint8 [H, W, 3]."""
    below = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    return torch.from_numpy(np.array(Image.blend(below, Image.fromarray(colors.numpy()), opacity)))


def legend(labels: Tensor, info: DatasetInfo) -> Tensor:
    """The classes present in ``labels``, the most frequent first, as a strip uint8 [h, W, 3] as wide as the labels."""
    counts = torch.bincount(labels.flatten().long(), minlength=256)[: info.num_classes]
    present = [index for index in counts.argsort(descending=True, stable=True).tolist() if counts[index] > 0]
    width, line, gap = labels.shape[1], 16, 4
    font = ImageFont.load_default(size=11)
    places, x, y = [], gap, 0
    for index in present:
        needed = line + 2 * gap + math.ceil(font.getlength(info.classes[index]))
        if x + needed > width and x > gap:
            x, y = gap, y + line
        places.append((x, y, index))
        x += needed
    strip = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, index in places:
        draw.rectangle((x, y + 3, x + line - gap, y + line - 3), fill=info.palette[index], outline="black")
        draw.text((x + line, y + 1), info.classes[index], fill="black", font=font)
    return torch.from_numpy(np.array(strip))


def panel(
    image: Tensor, label: Tensor, prediction: Tensor, info: DatasetInfo, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Input, label and prediction side by side: uint8 [H, 3·W, 3] from a normalised ``image`` float32 [3, H, W]."""
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    picture = (image.cpu() * scale + shift).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return torch.cat([picture, colorize(label, info), colorize(prediction, info)], dim=1)


@torch.inference_mode()
def validation_panels(model: nn.Module, dataset: Any, info: DatasetInfo, config: TrainConfig) -> Iterator[Tensor]:
    """A :func:`panel` of each of the first ``run.pictures`` samples; the model's training mode is kept."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for i in range(min(config.run.pictures, len(dataset))):
        image, label = dataset[i]
        batch = image[None].to(device, memory_format=torch.channels_last)
        with autocast(device, config.run.amp):
            prediction = predict_labels(model, batch, config.eval)[0]
        yield panel(image, label, prediction, info, config.data.mean, config.data.std)
    model.train(was_training)
