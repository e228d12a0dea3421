"""Arguments at the border of what the operators take: degenerate sizes, and clear errors for what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from running import draw_norm, random
from torch import Tensor

from pspnet_fast import ops, reference
from pspnet_fast.ops import pyramid_conv_composed

ONE = torch.zeros(1, 1, 1)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_x_without_channels(bias: bool, kernel: int) -> None:
    x, levels, weight = random(2, 0, 4, 4), random(2, 3, 5), random(5, 6, kernel, kernel)
    added = random(5) if bias else None
    arguments = [t.requires_grad_() for t in (x, levels, weight)]
    result = ops.pyramid_conv(*arguments, added, bins=(1, 2))
    expected = reference.pyramid_conv(*(t.detach().double() for t in arguments), _double(added), bins=(1, 2))
    assert result.shape == (2, 5, 4, 4)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    composed = pyramid_conv_composed.forward(*(t.detach() for t in arguments), added, [1, 1, 2, 2], True, True)
    torch.testing.assert_close(composed.double(), expected, rtol=1e-5, atol=1e-5)
    assert [g.shape for g in torch.autograd.grad(result.sum(), arguments)] == [t.shape for t in arguments]

    with torch.no_grad():
        norm = draw_norm(5)
        fused = ops.pyramid_conv_norm_relu(x, levels, weight, norm, added, bins=(1, 2))
    exact = reference.norm_relu(expected, reference.NormStatistics(*(t.double() for t in norm[:4]), norm.eps))
    torch.testing.assert_close(fused.double(), exact, rtol=1e-4, atol=1e-4)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def test_bins_may_be_integers_of_numpy() -> None:
    x = random(1, 2, 5, 5)
    torch.testing.assert_close(ops.pyramid_pool(x, np.array([1, 3])), ops.pyramid_pool(x, (1, 3)))


@pytest.mark.parametrize(
    ("bins", "shown"),
    [(3, "3"), ((), "()"), ((0,), "(0,)"), ((1, True), "(1, True)"), ((1.0,), "(1.0,)"), ((2**31,), "2147")],
)
def test_bins_that_are_refused(bins: Any, shown: str) -> None:
    with pytest.raises(ValueError, match="bins must be a sequence of integers of 1 to 4096") as error:
        ops.pyramid_pool(torch.zeros(1, 1, 2, 2), bins)
    assert shown in str(error.value)


@pytest.mark.parametrize("size", [(2**40, 1), (1, 2**25), (0, 3), (3,), 3, None])
def test_sizes_that_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size must be"):
        ops.upsample_argmax(torch.zeros(1, 2, 2, 2), size)


@pytest.mark.parametrize("name", ["x", "levels", "weight", "bias", "logits", "target", "total", "norm", "norm.mean"])
def test_what_is_no_tensor_is_named(name: str) -> None:
    x, levels, weight = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 1), torch.zeros(2, 4, 1, 1)
    given: dict[str, Any] = {"x": x, "levels": levels, "weight": weight, "bias": None}
    norm: Any = draw_norm(2)._replace(mean=[0.0, 0.0]) if name == "norm.mean" else [1.0]
    calls = {
        "logits": lambda: ops.upsample_argmax([[1.0]], (2, 2)),  # type: ignore[arg-type]
        "target": lambda: ops.upsample_cross_entropy(x, [[[0]]]),  # type: ignore[arg-type]
        "total": lambda: ops.upsample_softmax_add([0.0], x, (3, 3)),  # type: ignore[arg-type]
        "norm": lambda: ops.pyramid_conv_norm_relu(x, levels, weight, norm, bins=(1,)),
        "norm.mean": lambda: ops.pyramid_conv_norm_relu(x, levels, weight, norm, bins=(1,)),
    }
    call = calls.get(name, lambda: ops.pyramid_conv(**{**given, name: [1.0, 2.0]}, bins=(1,)))
    with pytest.raises(TypeError, match=f"^{name} must be "):
        call()


def test_levels_without_channels() -> None:
    with pytest.raises(ValueError, match=r"levels have no channels: their shape is \(1, 0, 1\)"):
        ops.pyramid_concat(torch.zeros(1, 2, 3, 3), torch.zeros(1, 0, 1), bins=(1,))


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf")])
def test_eps_that_is_refused(eps: float) -> None:
    x, levels, weight = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 1), torch.zeros(2, 4, 1, 1)
    with pytest.raises(ValueError, match=r"norm.eps must be a finite number of at least 0"):
        ops.pyramid_conv_norm_relu(x, levels, weight, draw_norm(2)._replace(eps=eps), bins=(1,))
    with pytest.raises(ValueError, match=r"norms\[0\].eps must be a finite number of at least 0"):
        ops.pyramid_levels(x, [torch.zeros(2, 2, 1, 1)], [draw_norm(2)._replace(eps=eps)], (1,))
