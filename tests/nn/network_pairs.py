"""A PSPNet and the plain one with the same weights, and one training step of either."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from plain_pspnet import PlainPSPNet
from torch import Tensor, nn

from pspnet_fast.nn import PSPNet

CLASSES = 3
SIZE = (57, 49)


def with_statistics(net: Any) -> Any:
    """``net`` as after some training, so that evaluation differs from an identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def make_pair(dtype: torch.dtype = torch.float64, **arguments: Any) -> tuple[PSPNet, PlainPSPNet]:
    arguments = {"layers": 18, "classes": CLASSES, **arguments}
    plain = with_statistics(PlainPSPNet(**arguments).to(dtype))
    fast = PSPNet(**arguments, pretrained=False).to(dtype)
    fast.load_state_dict(plain.state_dict())
    return fast, plain


def make_batch(
    batch: int = 3, size: tuple[int, int] = SIZE, zoom: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Images, and labels with a part ignored."""
    height, width = ((n - 1) * zoom // 8 + 1 for n in size)
    labels = torch.randint(0, CLASSES, (batch, height, width))
    labels[torch.rand(labels.shape) < 0.1] = 255
    return torch.randn(batch, 3, *size, dtype=dtype), labels


class Step(NamedTuple):
    labels: Tensor
    main: Tensor
    aux: Tensor
    gradients: dict[str, Tensor]


def training_step(model: nn.Module, x: Tensor, y: Tensor, seed: int = 7) -> Step:
    """One forward and backward in training mode from a fixed state of the random numbers; dropout included."""
    torch.manual_seed(seed)
    model.train().zero_grad(set_to_none=True)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    labels, main, aux = model(x, y)
    (main + 0.4 * aux).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Step(labels, main.detach(), aux.detach(), {**gradients, "input": x.grad})


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Equal to ``tolerance`` of the largest value: a sum's rounding is relative to its terms, not to itself."""
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * expected.abs().nan_to_num().max().item(),
        equal_nan=True,
        msg=lambda message: f"{name}: {message}",
    )


def assert_same_step(actual: Step, expected: Step, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual.labels, expected.labels, rtol=0, atol=0)
    assert_near(actual.main, expected.main, tolerance, "main loss")
    assert_near(actual.aux, expected.aux, tolerance, "auxiliary loss")
    assert actual.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert_near(actual.gradients[name], gradient, tolerance, f"gradient of {name}")


def assert_trains_alike(fast: PSPNet, plain: PlainPSPNet, x: Tensor | None = None, y: Tensor | None = None) -> Step:
    """A training step of both is the same; returned is that of ``fast``."""
    if x is None or y is None:
        x, y = make_batch()
    step = training_step(fast, x, y)
    assert_same_step(step, training_step(plain, x, y))
    return step
