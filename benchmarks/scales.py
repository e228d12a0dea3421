"""Evaluation over six scales and mirror images: semseg's way, mmsegmentation's, and this package's.

The network costs nothing, so that what each does behind it is all that takes time and memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Call, Case, Floor, Place, Results, dimensions
from benchmarks.peers import MMSEG, OURS, SEMSEG
from pspnet_fast import PSPNet
from pspnet_fast.engine import EvalConfig
from pspnet_fast.engine.inference import predict_labels, windows

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
STRIDE = 2 / 3  # of a window
Size = tuple[int, int]


@dataclass(frozen=True)
class Evaluation:
    """One image of ``size`` with so many classes, whole or by windows of ``crop``."""

    classes: int
    size: Size
    crop: int | None = None
    scales: tuple[float, ...] = SCALES


class LowResolution(PSPNet):
    """Logits from a product with the image."""

    def __init__(self, classes: int) -> None:
        super().__init__(18, classes=classes, pretrained=False)
        self.mix = torch.randn(classes, 3, generator=torch.Generator().manual_seed(0))

    def low_resolution_logits(self, x: Tensor) -> Tensor:
        height, width = ((n - 1) // 8 + 1 for n in x.shape[-2:])
        return torch.einsum("kc,ncij->nkij", 4 * self.mix, F.adaptive_avg_pool2d(x, (height, width)))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def scaled(image: Tensor, scale: float) -> Tensor:
    return resized(image, [max(1, round(n * scale)) for n in image.shape[-2:]])


def over_windows(image: Tensor, crop: int | None, run: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of ``run`` over the windows that cover a pixel, at full resolution; images below a window are padded."""
    if crop is None:
        return run(image)
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, max(crop - width, 0), 0, max(crop - height, 0)))
    tops, lefts = (list(windows(n, crop, int(-(-crop * STRIDE // 1)))) for n in padded.shape[-2:])
    total, count = torch.zeros(()), padded.new_zeros(padded.shape[-2:])
    for top in tops:
        for left in lefts:
            part = (..., slice(top, top + crop), slice(left, left + crop))
            result = run(padded[part])
            if total.dim() == 0:
                total = result.new_zeros(*result.shape[:2], *padded.shape[-2:])
            total[part] += result
            count[part] += 1
    return (total / count)[..., :height, :width]


def semseg(net: PSPNet, image: Tensor, setting: Evaluation) -> Tensor:
    """The tool test.py: probabilities of a window and its mirror image; their map is resized to the image, and summed.

    There in float64 with NumPy on a CPU, here in float32.
    """

    def probabilities(window: Tensor) -> Tensor:
        both = net(torch.cat([window, window.flip(3)])).softmax(1)
        return (both[:1] + both[1:].flip(3)) / 2

    total = image.new_zeros(1, setting.classes, *setting.size)
    for scale in setting.scales:
        total += resized(over_windows(scaled(image, scale), setting.crop, probabilities), setting.size)
    return (total / len(setting.scales)).argmax(1)


def mmsegmentation(net: PSPNet, image: Tensor, setting: Evaluation) -> Tensor:
    """SegTTAModel: logits of each scale and its mirror image, resized to the image; softmax of each, and the mean.

    A window's logits are averaged, not its probabilities.
    """
    every = []
    for scale in setting.scales:
        for mirrored in (False, True):
            x = scaled(image, scale)
            logits = over_windows(x.flip(3) if mirrored else x, setting.crop, net)
            every.append(resized(logits.flip(3) if mirrored else logits, setting.size))
    total = torch.zeros_like(every[0])
    for logits in every:
        total += logits.softmax(1)
    return (total / len(every)).argmax(1)


def ours(net: PSPNet, image: Tensor, setting: Evaluation) -> Tensor:
    options = EvalConfig(scales=setting.scales, flip=True, crop=setting.crop, stride=STRIDE)
    return predict_labels(net, image, options)


PEERS: dict[str, Callable[[PSPNet, Tensor, Evaluation], Tensor]] = {SEMSEG: semseg, MMSEG: mmsegmentation, OURS: ours}


def build(setting: Evaluation, place: Place, peer: str) -> Call:
    """The labels of one image by a peer."""
    net = LowResolution(setting.classes).to(place.device).eval()
    net.mix = net.mix.to(place.device)
    image = place.normal(1, 3, *setting.size)

    @torch.inference_mode()
    def evaluate() -> Results:
        return (PEERS[peer](net, image, setting),)

    return evaluate


def cases(device: str, *, quick: bool = False) -> Iterator[Case]:
    """Whole images and sliding windows, with the classes of ADE20K and of Cityscapes."""
    chosen = [Evaluation(150, (473, 473)), Evaluation(150, (512, 683), 473), Evaluation(19, (512, 1024))]
    if quick:
        chosen = [Evaluation(5, (57, 65), 33, (0.5, 1.25))]
    for setting in chosen:
        way = "whole" if setting.crop is None else f"windows of {dimensions(setting.crop, setting.crop)}"
        place = Place(device)
        yield Case(
            operator="multi_scale_inference",
            labels=place.labels(f"{dimensions(*setting.size)}, {setting.classes} classes, {way}", "forward"),
            device=device,
            peers=tuple(PEERS),
            build=functools.partial(build, setting, place),
            floor=Floor(0, 0),
            tolerance=0.05,  # mmsegmentation averages other numbers
            graph=False,
            threads=1 if device == "cpu" else None,
        )
