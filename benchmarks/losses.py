"""Cases of the losses of both heads and of the arg-max: low-resolution logits, full-resolution labels.

Each project's reduction makes another function of the logits. The peers of a case compute the same one, and ours takes
the options that give it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from benchmarks.case import Call, Case, Floor, Place, Results, Shape, blocky_labels, dimensions
from benchmarks.peers import MMSEG, SEMSEG, TRANSFORMERS, backend_of, compiled, is_ours, operator_case, peers_of

AUX_WEIGHT = 0.4
IGNORE_INDEX = 255
# A class this far below the others at every node: exponentials of their difference leave float32's range (88 nats).
FAR_BELOW = 200.0
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # in bfloat16 eager interpolates in it
Size = tuple[int, int]
# (main logits, auxiliary logits, labels) -> the loss to be differentiated, and what else a training step takes along.
Losses = Callable[[Tensor, Tensor, Tensor], Results]


@dataclass(frozen=True)
class LossArrangement:
    """A project's losses.

    Attributes:
        align_corners: of the upsampling.
        all_pixels: whether the mean is over all pixels, with 0 for ignored ones, instead of over the labelled ones.
        labels: whether the main head's arg-max is computed too.
    """

    align_corners: bool = True
    all_pixels: bool = False
    labels: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """What gives the same function in this package."""
        mean = {"denominator": "all", "empty": "zero"} if self.all_pixels else {}
        return {"align_corners": self.align_corners, **mean}


NETWORK = LossArrangement()
ARRANGEMENTS = {
    SEMSEG: LossArrangement(labels=True),
    MMSEG: LossArrangement(align_corners=False, all_pixels=True),
    TRANSFORMERS: LossArrangement(align_corners=False),
}


def stock_losses(arrangement: LossArrangement, main: Tensor, aux: Tensor, target: Tensor) -> Results:
    """Upsample each head's logits, take the criterion of each."""

    def upsampled(logits: Tensor) -> Tensor:
        return F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=arrangement.align_corners)

    def criterion(logits: Tensor) -> Tensor:
        reduction = "none" if arrangement.all_pixels else "mean"
        return F.cross_entropy(logits, target, reduction=reduction, ignore_index=IGNORE_INDEX).mean()

    if arrangement.labels:
        main, aux = upsampled(main), upsampled(aux)
        return criterion(main) + AUX_WEIGHT * criterion(aux), main.max(1)[1]
    return (criterion(upsampled(main)) + AUX_WEIGHT * criterion(upsampled(aux)),)


def fused_losses(arrangement: LossArrangement, main: Tensor, aux: Tensor, target: Tensor) -> Results:
    """The same by this package's operator."""
    options = {"aux_weight": AUX_WEIGHT, **arrangement.options}
    if not arrangement.labels:
        return (pspnet_fast.dual_cross_entropy(main, aux, target, **options).loss,)
    result = pspnet_fast.dual_cross_entropy_argmax(main, aux, target, **options)
    return result.loss, result.labels


def transformers_losses() -> Losses:
    """The package's own function.

    Raises:
        RuntimeError: the installed transformers has none.
    """
    import transformers
    from transformers.loss.loss_utils import LOSS_MAPPING

    name = "ForSemanticSegmentation"
    if name not in LOSS_MAPPING:
        raise RuntimeError(
            f"transformers {transformers.__version__} has no {name} in LOSS_MAPPING: install a newer one"
        )
    options = {"ignore_index": IGNORE_INDEX, "auxiliary_loss_weight": AUX_WEIGHT}
    return lambda main, aux, target: (LOSS_MAPPING[name](main, target, auxiliary_logits=aux, **options),)


@dataclass(frozen=True)
class Problem:
    """Logits [batch, classes, *low] against labels [batch, *high]; ``far_apart``: too far for any shortcut."""

    batch: int
    classes: int
    low: Size
    high: Size
    place: Place
    far_apart: bool = False

    @property
    def shape(self) -> str:
        return f"{dimensions(*self.maps)} -> {dimensions(*self.high)}"

    @property
    def maps(self) -> Shape:
        return self.batch, self.classes, *self.low

    @property
    def pixels(self) -> int:
        return self.batch * math.prod(self.high)

    def logits(self, seed: int) -> Tensor:
        """One head's logits, of standard deviation 3."""
        z = 3 * replace(self.place, dtype=torch.float32).normal(*self.maps, seed=seed)
        if self.far_apart:
            z[:, 0] -= FAR_BELOW
        return z.to(self.place.dtype).requires_grad_()


def build_losses(problem: Problem, arrangement: LossArrangement, peer: str) -> Call:
    """Both losses and the gradients of both heads' logits."""
    logits = problem.logits(0), problem.logits(1)
    target = blocky_labels(problem.batch, *problem.high, problem.classes, problem.place.device)
    function: Losses = compiled(functools.partial(stock_losses, arrangement), peer)
    if is_ours(peer):
        function = functools.partial(fused_losses, arrangement)
    elif peer == TRANSFORMERS:
        function = transformers_losses()

    def step() -> Results:
        with problem.place.autocast(), backend_of(peer):
            loss, *others = function(*logits, target)
            return loss.detach(), *others, *torch.autograd.grad(loss, logits)

    return step


def losses(problem: Problem, arrangement: str = "") -> Case:
    """The losses as a project arranges them; without a name, as this package's network does."""
    place, kind = problem.place, ARRANGEMENTS[arrangement] if arrangement else NETWORK
    per_pixel, flops = (16, 2 * 8 + 4) if kind.labels else (8, 2 * 8)
    return Case(
        operator="dual_cross_entropy",
        labels={**place.labels(problem.shape), **({"logits": "far apart"} if problem.far_apart else {})},
        device=place.device,
        **peers_of(["dual_cross_entropy"], place.device, arrangement),
        build=functools.partial(build_losses, problem, kind),
        floor=Floor(
            bytes=2 * 2 * math.prod(problem.maps) * place.dtype.itemsize + per_pixel * problem.pixels,
            flops=flops * problem.pixels * problem.classes,
        ),
        tolerance=TOLERANCE[place.dtype],
        page_faults=place.device == "cpu",
    )


def stock_argmax(logits: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(dim=1)


def argmax(problem: Problem) -> Case:
    """Labels from logits, as in validation."""
    place = problem.place
    stock, fused = (functools.partial(f, size=problem.high) for f in (stock_argmax, pspnet_fast.upsample_argmax))
    return operator_case(
        "upsample_argmax",
        place,
        (stock, fused),
        [problem.maps],
        title=problem.shape,
        floor=Floor(
            bytes=math.prod(problem.maps) * place.dtype.itemsize + 8 * problem.pixels,
            flops=6 * problem.pixels * problem.classes,
        ),
        tolerance=1e-4,  # of the pixels: two classes may tie to rounding
        page_faults=place.device == "cpu",
    )
