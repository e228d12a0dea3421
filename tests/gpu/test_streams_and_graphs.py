"""Determinism, CUDA graphs and streams, for every operator at real sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from real_sizes import DEVICE, blocky_labels, random, require_kernel
from torch import Tensor

import pspnet_fast
from pspnet_fast.ops.pyramid_conv import pyramid_conv_norm_relu
from pspnet_fast.ops.pyramid_pool import pyramid_levels
from pspnet_fast.reference import NormStatistics

Call = Callable[[], list[Tensor]]


def make_call(operator: str, inputs: dict[str, Tensor]) -> Call:
    """Forward and backward of an operator on ``inputs``, which may be refilled between two calls."""

    def graded(result: Tensor, *names: str) -> list[Tensor]:
        gradients = torch.autograd.grad(result, [inputs[name] for name in names], torch.ones_like(result))
        return [result.detach(), *gradients]

    def call() -> list[Tensor]:
        x, levels, weight, main, aux, target = inputs.values()
        if operator == "pyramid_pool":
            return graded(pspnet_fast.pyramid_pool(x), "x")
        if operator == "pyramid_concat":
            return graded(pspnet_fast.pyramid_concat(x, levels), "x", "levels")
        if operator == "pyramid_conv":
            return graded(pspnet_fast.pyramid_conv(x, levels, weight), "x", "levels", "weight")
        if operator in ("pyramid_levels", "pyramid_conv_norm_relu"):
            return [inference(operator, x, levels, weight)]
        if operator == "upsample_cross_entropy":
            return graded(pspnet_fast.upsample_cross_entropy(main, target, label_smoothing=0.1), "main")
        if operator == "dual_cross_entropy":
            return graded(pspnet_fast.dual_cross_entropy(main, aux, target).loss, "main", "aux")
        if operator == "upsample_add":
            packed, sizes = torch.cat([main.flatten(2), aux.flatten(2)], dim=2), ((60, 60), (60, 60))
            maps = [
                pspnet_fast.upsample_add(packed, size=(240, 200), bins=sizes, channels_last=last)
                for last in (False, True)
            ]
            return [result for y in maps for result in graded(y, "main", "aux")]
        if operator == "upsample_softmax_add":
            total = main.new_zeros(*main.shape[:2], *target.shape[-2:])
            return [pspnet_fast.upsample_softmax_add(total, main.detach(), target.shape[-2:], flip=True)]
        return [pspnet_fast.upsample_argmax(main, target.shape[-2:])]

    return call


@torch.no_grad()
def inference(operator: str, x: Tensor, levels: Tensor, weight: Tensor) -> Tensor:
    """The operators of evaluation mode, with statistics and projections that are parts of ``weight``."""
    mean, root, gamma, beta = weight[:, :4, 1, 1].T
    norm = NormStatistics(mean, root.square() + 0.5, gamma, beta, 1e-5)
    if operator == "pyramid_levels":
        return pyramid_levels(x, [weight[:, : x.shape[1], i : i + 1, :1] for i in (0, 1, 2, 0)], [norm] * 4)
    return pyramid_conv_norm_relu(x, levels, weight, norm)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    floats = {
        "x": random(2, 1024, 60, 60, channels_last=True),
        "levels": random(2, 256, 50),
        "weight": random(256, 2048, 3, 3) / 96,
        "main": random(4, 150, 60, 60),
        "aux": random(4, 150, 60, 60),
    }
    return {**{name: t.requires_grad_() for name, t in floats.items()}, "target": blocky_labels(4, 473, 473, 150)}


@pytest.fixture(
    params=[
        "pyramid_pool", "pyramid_concat", "pyramid_conv", "pyramid_levels", "pyramid_conv_norm_relu",
        "upsample_cross_entropy", "dual_cross_entropy", "upsample_argmax", "upsample_add", "upsample_softmax_add",
    ]
)  # fmt: skip
def operator(request: pytest.FixtureRequest, backend: str) -> str:
    """An operator that has something of this project's to test on the back end."""
    name: str = request.param
    if backend == "reference":
        pytest.skip("stock operators promise none of this")
    require_kernel(name, backend)
    return name


@pytest.fixture
def _only_deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_only_deterministic")
def test_same_bits_in_every_run(operator: str, inputs: dict[str, Tensor]) -> None:
    """And nothing refuses to run under use_deterministic_algorithms."""
    call = make_call(operator, inputs)
    expected = call()
    other = torch.empty(1 << 26, device=DEVICE)
    for _ in range(5):
        other.normal_()  # another state of the caches, and of the memory that results are allocated from
        torch.testing.assert_close(call(), expected, rtol=0, atol=0, equal_nan=False)


def test_no_synchronisation(operator: str, inputs: dict[str, Tensor]) -> None:
    call = make_call(operator, inputs)
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def _one_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution in an operator is cuDNN's, whose fastest gradients add up in no fixed order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.mark.usefixtures("_one_algorithm")
def test_cuda_graph(operator: str, inputs: dict[str, Tensor]) -> None:
    """Captured once, replayed with other inputs: the same bits as calling it."""
    call = make_call(operator, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()

    with torch.no_grad():
        for name, tensor in inputs.items():
            if name == "target":
                tensor.copy_(blocky_labels(4, 473, 473, 150))
            else:
                tensor.normal_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, call(), rtol=0, atol=0)


@pytest.mark.usefixtures("_one_algorithm")
def test_current_stream(operator: str, inputs: dict[str, Tensor]) -> None:
    """On a stream of its own an operator reads what that stream wrote before, however late that was."""
    call = make_call(operator, inputs)
    expected = call()
    with torch.no_grad():
        kept = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            tensor.zero_() if name == "target" else tensor.normal_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # a tenth of a second in which another stream would run ahead
        with torch.no_grad():
            for name, tensor in inputs.items():
                tensor.copy_(kept[name])
        late = call()
    torch.cuda.synchronize()
    torch.testing.assert_close(late, expected, rtol=0, atol=0)
