"""The training losses of both heads, as each project reduces them, and the arg-max of validation.

Each arrangement is another function of the logits: the peers of a case compute one and the same, and ours takes the
options that make it that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from benchmarks import cross_entropy
from benchmarks.case import (
    COMPILE,
    EAGER,
    Call,
    Case,
    Results,
    as_training,
    backend_of,
    blocky_labels,
    compiled,
    dimensions,
    is_ours,
    normal,
    our_peers,
)
from benchmarks.ceilings import Floor
from benchmarks.suite.configurations import (
    MMSEG,
    SEMSEG,
    TRANSFORMERS,
    Configuration,
    Precision,
    configurations,
    labels,
    precisions,
)
from benchmarks.suite.packages import peers_of, transformers_loss

AUX_WEIGHT = 0.4
IGNORE_INDEX = 255

# (main logits, auxiliary logits, labels) -> the loss to be differentiated, and what else a training step takes along.
Losses = Callable[[Tensor, Tensor, Tensor], Results]


def semseg(main: Tensor, aux: Tensor, target: Tensor) -> Results:
    """Both heads' logits at full resolution, the criterion on each, and the main head's labels (align_corners)."""
    size = target.shape[-2:]
    main, aux = (F.interpolate(logits, size, mode="bilinear", align_corners=True) for logits in (main, aux))
    main_loss, aux_loss = (F.cross_entropy(up, target, ignore_index=IGNORE_INDEX) for up in (main, aux))
    return main_loss + AUX_WEIGHT * aux_loss, main.max(1)[1]


def mmsegmentation(main: Tensor, aux: Tensor, target: Tensor) -> Results:
    """Each head resizes its logits, takes the loss of every pixel, and the mean over all: ignored ones count as 0."""

    def loss(logits: Tensor) -> Tensor:
        up = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(up, target, reduction="none", ignore_index=IGNORE_INDEX).mean()

    return (loss(main) + AUX_WEIGHT * loss(aux),)


def transformers(main: Tensor, aux: Tensor, target: Tensor) -> Results:
    """Each head's logits resized, the mean over the labelled pixels."""

    def loss(logits: Tensor) -> Tensor:
        up = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(up, target, ignore_index=IGNORE_INDEX)

    return (loss(main) + AUX_WEIGHT * loss(aux),)


def transformers_own() -> Losses:
    """The package's own function."""
    loss = transformers_loss()

    def losses(main: Tensor, aux: Tensor, target: Tensor) -> Results:
        options = {"ignore_index": IGNORE_INDEX, "auxiliary_loss_weight": AUX_WEIGHT}
        return (loss(main, target, auxiliary_logits=aux, **options),)

    return losses


@dataclass(frozen=True)
class LossArrangement:
    """A project's losses: in stock operators, as the package has them, and as options of ours.

    Attributes:
        stock: in stock operators, as the project arranges them.
        own: makes the package's own function, where it can be a peer.
        options: what makes ours the same function.
        predicts: whether the main head's labels come with the losses.
        words: the function, for the table.
    """

    stock: Losses
    words: str
    options: Mapping[str, Any] = field(default_factory=dict)
    own: Callable[[], Losses] | None = None
    predicts: bool = False


ARRANGEMENTS = {
    SEMSEG: LossArrangement(semseg, "align_corners, mean over labelled pixels, with the arg-max", predicts=True),
    MMSEG: LossArrangement(
        mmsegmentation,
        "no align_corners, mean over all pixels",
        {"align_corners": False, "denominator": "all", "empty": "zero"},
    ),
    TRANSFORMERS: LossArrangement(
        transformers, "no align_corners, mean over labelled pixels", {"align_corners": False}, transformers_own
    ),
}


def cases(device: str, *, quick: bool) -> list[Case]:
    """Losses and arg-max of every configuration, in each precision and arrangement."""
    return [
        case
        for configuration in configurations(device, quick=quick)
        for precision in precisions(device)
        for case in (
            *(losses(configuration, precision, project, device) for project in ARRANGEMENTS),
            *([argmax(configuration, device)] if precision.dtype == torch.float32 else []),
        )
    ]


def ours(arrangement: LossArrangement) -> Losses:
    """This package's losses with an arrangement's options."""

    def plain(main: Tensor, aux: Tensor, target: Tensor) -> Results:
        return (pspnet_fast.dual_cross_entropy(main, aux, target, aux_weight=AUX_WEIGHT, **arrangement.options).loss,)

    def predicting(main: Tensor, aux: Tensor, target: Tensor) -> Results:
        result = pspnet_fast.dual_cross_entropy_argmax(main, aux, target, aux_weight=AUX_WEIGHT, **arrangement.options)
        assert result.labels is not None
        return result.loss, result.labels

    return predicting if arrangement.predicts else plain


def losses(configuration: Configuration, precision: Precision, project: str, device: str) -> Case:
    """Both losses, and the gradients of both heads' logits."""
    arrangement = ARRANGEMENTS[project]
    batch, classes, low, high = (
        configuration.images, configuration.classes, configuration.map_size, configuration.crop
    )  # fmt: skip
    dtype = precision.dtype

    def build(peer: str) -> Call:
        main, aux = (
            (3 * normal(batch, classes, *low, device=device, layout=precision.layout, seed=seed))
            .to(dtype)
            .requires_grad_()
            for seed in range(2)
        )
        target = blocky_labels(batch, *high, classes, device)
        if is_ours(peer):
            function = ours(arrangement)
        elif peer == project and arrangement.own is not None:
            function = arrangement.own()
        else:
            function = compiled(arrangement.stock, peer)

        def step() -> Results:
            with as_training(device, dtype), backend_of(peer):
                loss, *others = function(main, aux, target)
                return loss.detach(), *others, *torch.autograd.grad(loss, (main, aux))

        return step

    own, absent = peers_of(project)
    nodes, pixels = batch * low[0] * low[1] * classes, batch * high[0] * high[1]
    gradient_bytes = 2 * nodes * dtype.itemsize
    shape = f"{dimensions(batch, classes, *low)} -> {dimensions(*high)}"
    return Case(
        operator="dual_cross_entropy",
        labels=labels(configuration, precision, shape, project, "forward + backward"),
        device=device,
        peers=(EAGER, COMPILE, *own, *our_peers(["dual_cross_entropy"], device)),
        build=build,
        floor=Floor(
            bytes=2 * gradient_bytes + (16 if arrangement.predicts else 8) * pixels,
            flops=(2 * 8 + (4 if arrangement.predicts else 0)) * pixels * classes,
        ),
        tolerance=cross_entropy.TOLERANCE[dtype],
        gradient_bytes=gradient_bytes,
        page_faults=device == "cpu",
        absent=absent,
    )


def argmax(configuration: Configuration, device: str) -> Case:
    """The most likely class of every pixel, as in validation."""
    case = cross_entropy.argmax(
        configuration.images, configuration.classes, configuration.map_size, configuration.crop, device
    )
    precision = Precision(torch.float32, "NCHW")
    return replace(case, labels=labels(configuration, precision, case.labels["shape"], SEMSEG, "forward"))
