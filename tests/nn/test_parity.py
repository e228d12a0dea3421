"""The network against the chain of stock operators: same weights, same input, same seed."""

from __future__ import annotations

import pytest
import torch
from network_pairs import Step, assert_near, assert_same_step, assert_trains_alike, make_batch, make_pair, training_step
from torch import Tensor

from pspnet_fast.backend import use_backend


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_float64(memory_format: torch.memory_format) -> None:
    fast, plain = (model.to(memory_format=memory_format) for model in make_pair())
    x, y = make_batch()
    image = make_batch(batch=1)[0].to(memory_format=memory_format)
    assert_near(fast.eval()(image), plain.eval()(image), 1e-10)
    assert_trains_alike(fast, plain, x.to(memory_format=memory_format), y)


@pytest.mark.parametrize(
    "arguments",
    [{"use_ppm": False}, {"bins": (6, 3, 2, 1)}, {"bins": (1, 4)}, {"layers": 34, "dropout": 0.5}, {"layers": 50}],
    ids=str,
)
def test_constructor_arguments(arguments: dict[str, object]) -> None:
    fast, plain = make_pair(**arguments)
    x, y = make_batch(batch=2, size=(33, 25))
    assert_trains_alike(fast, plain, x, y)
    assert_near(fast.eval()(x), plain.eval()(x), 1e-10)


@pytest.mark.parametrize("zoom", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(473, 17), (30, 44)], ids=str)
def test_zoom_factors(zoom: int, size: tuple[int, int]) -> None:
    fast, plain = make_pair(zoom_factor=zoom)
    x, y = make_batch(batch=2, size=size, zoom=zoom)
    height, width = fast.output_size(x)
    if size == (473, 17):
        assert (height, width) == ({1: 60, 2: 119, 4: 237, 8: 473}[zoom], 2 * zoom + 1)
    assert_trains_alike(fast, plain, x, y)
    logits = fast.eval()(x)
    assert logits.shape == (2, 3, height, width)
    assert_near(logits, plain.eval()(x), 1e-10)


def test_reference_backend_is_the_stock_chain() -> None:
    fast, plain = make_pair()
    x, y = make_batch()
    with use_backend("reference"):
        step = training_step(fast, x, y)
    assert_same_step(step, training_step(plain, x, y), tolerance=1e-12)


def test_batch_statistics_follow() -> None:
    fast, plain = make_pair()
    x, y = make_batch()
    for _ in range(2):
        training_step(fast, x, y), training_step(plain, x, y)
    for name, buffer in plain.named_buffers():
        assert_near(fast.get_buffer(name).double(), buffer.double(), 1e-10, name)


def test_float32_error() -> None:
    """At most twice the stock operators' own error against float64, plus 1e-6."""
    fast, plain = make_pair()
    x, y = make_batch()
    exact = training_step(plain, x, y)
    fast, plain = fast.float(), plain.float()
    own, stock = (_errors(training_step(model, x.float(), y), exact) for model in (fast, plain))
    for name, error in own.items():
        assert error <= 2 * stock[name] + 1e-6, f"{name}: {error:.2e}, stock operators {stock[name]:.2e}"


def _errors(step: Step, exact: Step) -> dict[str, float]:
    """Relative to the largest value of each quantity; one number for the gradients of each part of the network."""

    def error(actual: Tensor, expected: Tensor) -> float:
        return ((actual.double() - expected).norm() / expected.norm()).item()

    errors = {"main": error(step.main, exact.main), "aux": error(step.aux, exact.aux)}
    for part in {name.partition(".")[0] for name in exact.gradients}:
        names = [name for name in exact.gradients if name.partition(".")[0] == part]
        actual = torch.cat([step.gradients[name].flatten() for name in names])
        errors[part] = error(actual, torch.cat([exact.gradients[name].flatten() for name in names]))
    return errors
