"""Forward-mode differentiation, torch.func and torch.jit.trace: every operator gives what its definition does."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from descriptions import DESCRIPTIONS
from running import as_tuple, draw_norm, random
from torch import Tensor, nn
from torch.autograd import forward_ad

from pspnet_fast import BackendError, PSPNet, ops, use_backend
from pspnet_fast.backend import kernels
from pspnet_fast.nn import PyramidPooling
from pspnet_fast.ops.operator import exporting
from pspnet_fast.ops.pyramid_pool import count_owned

BINS = (1, 2)


def case(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The first result of an operator, as a function of one image: without the axis of the batch."""
    (operator,) = (description for description in DESCRIPTIONS if description.name == name)
    fused, _, inputs = operator.draw(**{"batch": 1, **operator.small})
    images = [t for t in inputs if len(t) == 1]  # behind them are parameters

    def function(*images: Tensor) -> Tensor:
        given = images if name in DIFFERENTIABLE else [t.detach() for t in images]
        return as_tuple(fused(*(t[None] for t in given), *inputs[len(images) :]))[0]

    return function, tuple(t[0] for t in images)


NAMES = [operator.name for operator in DESCRIPTIONS]
DIFFERENTIABLE = [operator.name for operator in DESCRIPTIONS if operator.gradient != "none"]


def as_definition(transformed: Callable[..., Any], *arguments: Any) -> None:
    """Holds ``transformed`` to what it gives on the definition."""
    with use_backend("reference"):
        expected = transformed(*arguments)
    torch.testing.assert_close(transformed(*arguments), expected, rtol=1e-4, atol=1e-5)


def batches(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.stack([t, t.flip(-1), 2 * t]) for t in inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_tangents(name: str) -> None:
    function, inputs = case(name)
    tangents = tuple(torch.randn_like(t) for t in inputs)

    def dual_tensors() -> Tensor:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents, strict=True)]
            tangent = forward_ad.unpack_dual(function(*duals)).tangent
        assert tangent is not None
        return tangent

    assert dual_tensors().abs().max() > 0
    as_definition(dual_tensors)
    as_definition(lambda: torch.func.jvp(function, inputs, tangents))
    as_definition(lambda: torch.func.jacfwd(function)(*inputs))
    if "norm" in name or name == "pyramid_levels":
        return  # torch cannot compile the tangent of its own batch normalisation
    compiled = torch.compile(lambda: torch.func.jvp(function, inputs, tangents), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(), torch.func.jvp(function, inputs, tangents))


@pytest.mark.parametrize("name", NAMES)
def test_vmap(name: str) -> None:
    function, inputs = case(name)
    as_definition(torch.func.vmap(function), *batches(inputs))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_under_transforms(name: str) -> None:
    function, inputs = case(name)

    def scalar(*tensors: Tensor) -> Tensor:
        return function(*tensors).square().sum()

    gradient = torch.func.grad(scalar, argnums=tuple(range(len(inputs))))
    as_definition(gradient, *inputs)
    as_definition(torch.func.vmap(gradient), *batches(inputs))  # a gradient for each sample
    as_definition(lambda: torch.func.vjp(scalar, *inputs)[1](torch.ones(())))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_through_vmap(name: str) -> None:
    function, inputs = case(name)

    def gradients() -> tuple[Tensor, ...]:
        leaves = [t.requires_grad_() for t in batches(inputs)]
        return torch.autograd.grad(torch.func.vmap(function)(*leaves).sum(), leaves)

    as_definition(gradients)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_jit_trace_with_and_without_gradients(name: str, recorded: bool) -> None:
    """torch.jit.trace compares its trace with one without gradients; a trace is saved, and differentiable."""
    function, inputs = case(name)
    file = io.BytesIO()
    with torch.set_grad_enabled(recorded):
        torch.jit.save(torch.jit.trace(function, tuple(t.requires_grad_(recorded) for t in inputs)), file)
    file.seek(0)
    leaves = tuple((0.5 * t).detach().requires_grad_() for t in inputs)
    results = [f(*leaves) for f in (torch.jit.load(file), function)]
    torch.testing.assert_close(*results)
    if name in DIFFERENTIABLE:
        torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), leaves) for r in results))


def test_jit_trace_of_a_network() -> None:
    """With gradients enabled, as users forget to disable them."""
    model, images = PSPNet(18, classes=3, pretrained=False).eval(), random(1, 3, 33, 33)
    torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("cpu" not in kernels("pyramid_pool"), reason="there are no kernels to refuse")
@pytest.mark.parametrize("name", NAMES)
def test_a_forced_backend_refuses_transforms(name: str) -> None:
    function, inputs = case(name)
    operator = name.removesuffix("_through")
    message = rf"backend 'cpu' cannot run {operator} under a transform of torch.func. Use use_backend\('reference'\)"
    with use_backend("cpu"), pytest.raises(BackendError, match=message):
        torch.func.vmap(function)(*batches(inputs))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pyramid = PyramidPooling(4, 2, BINS, norm="group")
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pyramid(x))


def test_per_sample_gradients_of_a_network() -> None:
    net, images = Net(), random(3, 4, 6, 5)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, image[None]).square().mean()

    as_definition(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0)), parameters, images)


@pytest.mark.parametrize("name", ["pyramid_conv", "pyramid_concat", "pyramid_conv_norm_relu"])
def test_inputs_of_inference_mode_under_a_trainable_weight(name: str) -> None:
    with torch.inference_mode():
        x = random(2, 3, 5, 4)
    levels, weight = random(2, 2, 5).requires_grad_(), random(4, 7, 3, 3).requires_grad_()
    if name == "pyramid_concat":
        result = ops.pyramid_concat(x, levels, bins=BINS)
    elif name == "pyramid_conv":
        result = ops.pyramid_conv(x, levels, weight, bins=BINS)
    else:
        result = ops.pyramid_conv_norm_relu(x, levels, weight, draw_norm(4), bins=BINS)
    (gradient,) = torch.autograd.grad(result.sum(), levels)
    assert gradient.isfinite().all()


def test_a_compilation_is_no_export() -> None:
    """It is one by torch.compiler.is_exporting() of torch 2.11."""

    class Told(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + int(exporting())

    x = torch.zeros(1)
    assert torch.compile(Told(), backend="eager", fullgraph=True)(x) == 0
    for strict in (False, True):
        assert torch.export.export(Told(), (x,), strict=strict).module()(x) == 1


def test_holders_are_counted_alike_where_compiled_code_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo compiles frames that compiled code calls, and their references are others."""
    counts: list[dict[int, Any]] = [{}, {}]

    def count(owned: dict[int, Any]) -> None:
        monkeypatch.setattr(sys.modules[count_owned.__module__], "_OWNED", owned)
        count_owned.cache_clear()
        count_owned(0)

    def called(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        count(counts[1])
        return x

    count(counts[0])
    torch.compile(called, backend="eager")(torch.ones(1))
    assert counts[0] == counts[1] != {}
