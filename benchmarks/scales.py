"""Evaluation over six scales and mirror images: semseg's way, mmsegmentation's, and this package's.

The network costs nothing, so that what each does behind it is all that takes time and memory.
"""

from __future__ import annotations

import functools
import itertools
import math
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
    """The mean of ``run`` over the windows that cover a pixel, at full resolution; no window exceeds the image."""
    if crop is None:
        return run(image)
    size = image.shape[-2:]
    tops, lefts = (list(windows(n, min(crop, n), math.ceil(crop * STRIDE))) for n in size)
    total: Tensor | None = None
    count = image.new_zeros(size)
    for top, left in itertools.product(tops, lefts):
        part = (..., slice(top, top + crop), slice(left, left + crop))
        result = run(image[part])
        total = result.new_zeros(*result.shape[:2], *size) if total is None else total
        total[part] += result
        count[part] += 1
    assert total is not None
    return total / count


def semseg(net: PSPNet, image: Tensor, setting: Evaluation) -> Tensor:
    """The tool test.py: probabilities of a window and its mirror image; their map is resized to the image, and summed.

    Images below the window are padded by the mean colour.
    There in float64 with NumPy on a CPU, here in float32.
    """

    def probabilities(window: Tensor) -> Tensor:
        both = net(torch.cat([window, window.flip(3)])).softmax(1)
        return (both[:1] + both[1:].flip(3)) / 2

    total = image.new_zeros(1, setting.classes, *setting.size)
    for scale in setting.scales:
        x = scaled(image, scale)
        missing = [max((setting.crop or 0) - n, 0) for n in x.shape[-2:]]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in missing)
        padded = over_windows(F.pad(x, (left, right, top, bottom)), setting.crop, probabilities)
        total += resized(padded[..., top : top + x.shape[2], left : left + x.shape[3]], setting.size)
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
    height, width = setting.size
    image = resized(place.normal(1, 3, height // 16, width // 16), setting.size)  # as smooth as pictures are

    @torch.inference_mode()
    def evaluate() -> Results:
        return (PEERS[peer](net, image, setting),)

    return evaluate


def cases(device: str, *, quick: bool = False) -> Iterator[Case]:
    """Whole images and sliding windows, with the classes of ADE20K and of Cityscapes."""
    chosen = [Evaluation(150, (473, 473)), Evaluation(150, (257, 343), 257), Evaluation(19, (512, 1024))]
    if quick:
        chosen = [Evaluation(5, (57, 65), 33, (0.5, 1.25))]
    for setting in chosen:
        way = "whole" if setting.crop is None else f"windows of {dimensions(setting.crop, setting.crop)}"
        place = Place(device)
        yield Case(
            operator="multi_scale_inference",
            labels=place.labels(f"{dimensions(*setting.size)}, {setting.classes} classes, {way}", backward=False),
            device=device,
            peers=tuple(PEERS),
            build=functools.partial(build, setting, place),
            floor=Floor(0, 0),
            tolerance=0.1,  # mmsegmentation averages other numbers
            graph=False,
            threads=1 if device == "cpu" else None,
            processor_time=True,
        )
