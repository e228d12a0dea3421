"""Models with deferred upsampling on a GPU, against the stock operators there, with and without autocast."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspnet_fast
from tests.fusion.heads import HEADS, Levels, fused_operators

DEVICE = "cuda"


def loss_of(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(model(x), target)


def fused_loss_of(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    with pspnet_fast.fuse():
        return loss_of(model, x, target)


def step(model: nn.Module, amp: torch.dtype | None, compiled: bool = False) -> list[Tensor]:
    """The loss of a training step, and the gradient of every parameter."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(2, 3, 64, 96, device=DEVICE, generator=generator)
    target = torch.randint(0, 5, (2, 64, 96), device=DEVICE, generator=generator)

    compute = torch.compile(fused_loss_of, dynamic=False) if compiled else loss_of
    with torch.autocast(DEVICE, amp, enabled=amp is not None):
        loss = compute(model, x, target)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head", "compiled"), [*((head, False) for head in HEADS), (Levels, True)])
def test_training_step(backend: str, head: type[nn.Module], compiled: bool, amp: torch.dtype | None) -> None:
    stock = head().to(DEVICE)
    ours = copy.deepcopy(stock) if compiled else pspnet_fast.accelerate(copy.deepcopy(stock))
    expected, found = step(stock, amp), step(ours, amp, compiled)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    if not compiled:
        in_float32 = pspnet_fast.accelerate(copy.deepcopy(stock))
        step(in_float32, None)
        assert fused_operators(ours) == fused_operators(in_float32)
    for a, b in zip(found, expected, strict=True):
        # cuDNN multiplies float32 in TF32, of 11 bits.
        assert (a - b).norm() <= (5e-2 if amp else 5e-3) * b.norm()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (8, 12), (32, 48)], ids=str)
def test_gradient_of_an_upsampling_that_nothing_fuses(backend: str, size: tuple[int, int], align_corners: bool) -> None:
    """In the same order every time, unless stock operators were asked for."""
    low = torch.randn(2, 8, *size, device=DEVICE, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 8, 64, 96, device=DEVICE, dtype=torch.float64)

    def gradient(x: Tensor, deferred: bool) -> Tensor:
        with pspnet_fast.fuse() if deferred else nullcontext():
            up = F.interpolate(x, (64, 96), mode="bilinear", align_corners=align_corners)
        return torch.autograd.grad(up.sin(), x, upstream.to(x.dtype))[0]

    torch.testing.assert_close(gradient(low, deferred=True), gradient(low, deferred=False))
    if backend != "reference":
        single = low.detach().float().requires_grad_()
        assert all(torch.equal(gradient(single, True), gradient(single, True)) for _ in range(3))
