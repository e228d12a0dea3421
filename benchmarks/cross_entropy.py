"""Cases of the cross-entropies and of the arg-max: low-resolution logits, full-resolution labels."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
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
    differentiated,
    dimensions,
    dtype_name,
    is_ours,
    normal,
    our_peers,
)
from benchmarks.ceilings import Floor

AUX_WEIGHT = 0.4
# A class this far below the others at every node: exponentials of their difference leave float32's range (88 nats).
FAR_BELOW = 200.0
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # bfloat16: eager interpolates in it


def cases(device: str, *, quick: bool) -> list[Case]:
    """The cross-entropies' cases for a device."""
    if quick:
        shape = (1, 19, (16, 16), (121, 121))
        return [dual(*shape, device), dual(*shape, device, far_below=True), argmax(1, 19, (16, 16), (121, 121), device)]
    low, high = (60, 60), (473, 473)
    city = ((64, 128), (512, 1024))
    if device == "cpu":
        return [
            dual(2, 19, low, high, device),
            dual(2, 150, low, high, device),
            dual(2, 150, low, high, device, layout="channels_last"),
            dual(1, 19, *city, device),
            dual(2, 150, low, high, device, far_below=True),
            argmax(1, 19, *city, device),
        ]
    return [
        dual(16, 150, low, high, device),
        dual(16, 150, low, high, device, dtype=torch.bfloat16, layout="channels_last"),
        dual(16, 19, low, high, device),
        argmax(8, 19, (128, 256), (1024, 2048), device),
    ]


def stock_dual(main: Tensor, aux: Tensor, target: Tensor) -> Tensor:
    """The two losses as everybody computes them."""

    def loss(logits: Tensor) -> Tensor:
        up = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=True)
        return F.cross_entropy(up, target, ignore_index=255)

    return loss(main) + AUX_WEIGHT * loss(aux)


def stock_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(dim=1)


def dual(
    batch: int,
    classes: int,
    low: tuple[int, int],
    high: tuple[int, int],
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "NCHW",
    far_below: bool = False,
) -> Case:
    """Both losses and both gradients. ``far_below``: logits too far apart for any shortcut through exponentials."""

    def build(peer: str) -> Call:
        logits = []
        for seed in range(2):
            z = 3 * normal(batch, classes, *low, device=device, layout=layout, seed=seed)
            if far_below:
                z[:, 0] -= FAR_BELOW
            logits.append(z.to(dtype).requires_grad_())
        main, aux = logits
        target = blocky_labels(batch, *high, classes, device)
        loss = compiled(stock_dual, peer)

        def stock() -> Results:
            with as_training(device, dtype):
                return differentiated(lambda: loss(main, aux, target), logits)

        def fused() -> Results:
            with backend_of(peer):
                return differentiated(
                    lambda: pspnet_fast.dual_cross_entropy(main, aux, target, aux_weight=AUX_WEIGHT).loss, logits
                )

        return fused if is_ours(peer) else stock

    nodes, pixels = batch * low[0] * low[1] * classes, batch * high[0] * high[1]
    gradient_bytes = 2 * nodes * dtype.itemsize
    return Case(
        operator="dual_cross_entropy",
        labels={
            "shape": f"{dimensions(batch, classes, *low)} -> {dimensions(*high)}",
            "dtype": dtype_name(dtype),
            "layout": layout,
            "direction": "forward + backward",
            **({"logits": "far apart"} if far_below else {}),
        },
        device=device,
        peers=(EAGER, COMPILE, *our_peers(["dual_cross_entropy"], device)),
        build=build,
        floor=Floor(bytes=2 * gradient_bytes + 8 * pixels, flops=2 * 8 * pixels * classes),
        tolerance=TOLERANCE[dtype],
        gradient_bytes=gradient_bytes,
        page_faults=device == "cpu",
    )


def argmax(batch: int, classes: int, low: tuple[int, int], high: tuple[int, int], device: str) -> Case:
    """The most likely class of every pixel."""

    def build(peer: str) -> Call:
        logits = normal(batch, classes, *low, device=device)
        stock = compiled(functools.partial(stock_argmax, size=high), peer)

        def labels() -> Results:
            if not is_ours(peer):
                return (stock(logits),)
            with backend_of(peer):
                return (pspnet_fast.upsample_argmax(logits, high),)

        return labels

    nodes, pixels = batch * low[0] * low[1] * classes, batch * high[0] * high[1]
    return Case(
        operator="upsample_argmax",
        labels={
            "shape": f"{dimensions(batch, classes, *low)} -> {dimensions(*high)}",
            "dtype": "float32",
            "layout": "NCHW",
            "direction": "forward",
        },
        device=device,
        peers=(EAGER, COMPILE, *our_peers(["upsample_argmax"], device)),
        build=build,
        floor=Floor(bytes=4 * nodes + 8 * pixels, flops=6 * pixels * classes),
        tolerance=1e-4,  # of the pixels: two classes may tie to rounding
        page_faults=device == "cpu",
    )
