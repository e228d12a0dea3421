from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawing import draw_conv, draw_norm_relu
from running import DENSE, Backend, check_same_bits, deterministic, differentiate, random
from torch import Tensor

from pspnet_fast import pyramid_conv, reference

OPERATOR = "pyramid_conv"


@pytest.mark.parametrize("layout", DENSE)
def test_sums_of_gradients_may_leave_the_range_of_float16(backend: Backend, layout: str) -> None:
    """What the levels and the weight get is small, as they are; the sum of the gradient over the map is not."""
    backend.require(torch.float16)
    x, levels, weight, _ = draw_conv((24, 24), layout=layout, dtype=torch.float16, device=backend.device).inputs
    inputs = [t.requires_grad_() for t in (x / 8, levels.abs() / 128, weight / 128)]
    upstream = torch.full((2, 4, 24, 24), 400.0, dtype=torch.float16, device=backend.device)  # times 576 is 230400
    grads = torch.autograd.grad(pyramid_conv(*inputs), inputs, upstream)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(reference.pyramid_conv(*exact), exact, upstream.double())
    for grad, wanted in zip(grads, expected, strict=True):
        assert wanted.abs().max() < 30000
        torch.testing.assert_close(grad.double(), wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


def test_identity_in_float64(backend: Backend) -> None:
    fused, definition, inputs = draw_conv((13, 9), dtype=torch.float64, device=backend.device)
    actual, expected = (differentiate(function, inputs) for function in (fused, definition))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (1, 2, 3)], ids=str)
def test_gradients_of_some_inputs(backend: Backend, wanted: tuple[int, ...]) -> None:
    fused, definition, inputs = draw_conv((6, 7), device=backend.device)

    def gradients(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        return torch.autograd.grad(function(*leaves).square().sum(), [leaves[i] for i in wanted])

    torch.testing.assert_close(gradients(fused), gradients(definition), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", DENSE)
def test_the_number_of_threads_does_not_matter(backend: Backend, layout: str) -> None:
    if backend.name != "cpu":
        pytest.skip("threads are the CPU kernels'")
    x, *rest = draw_conv((9, 11), layout=layout, device=backend.device).inputs
    # Nothing of oneDNN's convolution over x is left in the result, whose threads may share a sum.
    check_same_bits(lambda *tensors: pyramid_conv(torch.zeros_like(x), *tensors), rest, threads=(1, 2, 3))


def test_a_side_of_one_may_have_any_stride(backend: Backend) -> None:
    inputs = draw_conv((5, 1), layout="channels_last", device=backend.device).inputs
    plain = random(2, 4, 5, 1, layout="channels_last", device=backend.device)
    odd = plain.as_strided(plain.shape, (*plain.stride()[:3], 999))
    assert odd.is_contiguous(memory_format=torch.channels_last)
    results = (differentiate(pyramid_conv, inputs, [upstream])[1] for upstream in (odd, plain))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_native_operator_without_channels_of_x(backend: Backend, kernel: int) -> None:
    if backend.name not in ("cpu", "cuda"):
        pytest.skip("the native operators' own")
    levels, bias = random(2, 3, 5, device=backend.device), random(4, device=backend.device)
    weight = random(4, 7, kernel, kernel, device=backend.device)
    weight[:, 0] = 0
    operator = torch.ops.pspnet_fast.pyramid_conv
    no_x, x = (torch.zeros(2, c, 4, 5, device=backend.device) for c in (0, 1))
    actual = differentiate(lambda p, w: operator(no_x, p, w, bias, [1, 1, 2, 2], True, True), [levels, weight[:, 1:]])
    expected = differentiate(lambda p, w: reference.pyramid_conv(x, p, w, bias, bins=(1, 2)), [levels, weight])
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], (expected[1][0], expected[1][1][:, 1:]))


@pytest.mark.parametrize(
    ("limit", "bound", "dtype"),
    [
        ("R_BYTES", 2 * 5 * (3 * 1 + 3 * 2) * 70 * 4, torch.float32),  # of two images: rows, taps, outputs, bytes
        ("Q_BYTES", 1, torch.float64),
        ("Q_BYTES", 1, torch.float16),
    ],
)
@pytest.mark.parametrize("draw", [draw_conv, draw_norm_relu], ids=lambda draw: draw.__name__)
def test_triton_in_several_launches(
    backend: Backend, draw: Any, limit: str, bound: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose sums do not fit the cache, and levels whose products are too many at once, give the same bits.

    But of the levels' gradient for some outputs at a time, which sums over outputs in another order.
    """
    if backend.name != "triton":
        pytest.skip("Triton's kernels' own")
    from pspnet_fast.triton import pyramid_conv as kernels

    arguments = {"bins": (1, 2), "level_channels": 2, "outputs": 70, "batch": 3, "dtype": dtype}
    fused, _, inputs = draw(size=(5, 6), device=backend.device, **arguments)
    upstream: list[Tensor] = []
    with deterministic():
        results, together = differentiate(fused, inputs, upstream, gradient=draw is draw_conv)
        monkeypatch.setattr(kernels, limit, bound)
        again, gradients = differentiate(fused, inputs, upstream, gradient=draw is draw_conv)
    torch.testing.assert_close(again, results, rtol=0, atol=0)
    exactly = {"rtol": 0, "atol": 0}
    for index, (gradient, expected) in enumerate(zip(gradients, together, strict=True)):
        torch.testing.assert_close(gradient, expected, **({} if (limit, index) == ("Q_BYTES", 1) else exactly))
