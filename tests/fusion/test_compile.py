"""torch.compile: right always, fullgraph where the stock model is, and fused inside the graph."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Mixed, Plain, Pyramid, data

import pspnet_fast


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Recorder:
    """A backend that runs a graph as it is, and remembers what it called."""

    def __init__(self):
        self.targets = []

    def __call__(self, graph, inputs):
        def names(graph, inputs):
            self.targets += [str(node.target) for node in graph.graph.nodes]
            return graph.forward

        from torch._dynamo.backends.common import aot_autograd

        return aot_autograd(fw_compiler=names)(graph, inputs)

    def has(self, name):
        return any(name in target for target in self.targets)


def training_step(model, compiled, x, target):
    model.zero_grad()
    loss = compiled(x, target)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def with_loss(model):
    def step(x, target):
        with pspnet_fast.fuse():
            return F.cross_entropy(model(x), target, ignore_index=255)

    return step


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model(head, fullgraph):
    model = head()
    other = pspnet_fast.accelerate(copy.deepcopy(model))
    x, target = data()

    def loss_of(m, x, target):
        return F.cross_entropy(m(x), target, ignore_index=255)

    expected = training_step(model, lambda x, t: loss_of(model, x, t), x, target)
    backend = Recorder()
    compiled = torch.compile(other, backend=backend, fullgraph=fullgraph)
    found = training_step(other, lambda x, t: loss_of(compiled, x, t), x, target)
    torch.testing.assert_close(found, expected)
    assert backend.has("pspnet_fast.pyramid_conv") == (head is Pyramid)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_step_with_its_loss(head, dynamic):
    model = head()
    other = copy.deepcopy(model)
    backend = Recorder()
    compiled = torch.compile(with_loss(pspnet_fast.accelerate(other)), backend=backend, fullgraph=True, dynamic=dynamic)
    for size in ((32, 40), (32, 48)):
        x, target = data(size=size)
        expected = training_step(model, lambda x, t: F.cross_entropy(model(x), t, ignore_index=255), x, target)
        torch.testing.assert_close(training_step(other, compiled, x, target), expected)
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    assert not backend.has("upsample_bilinear2d") or head is not Plain


def test_compiled_labels():
    model = pspnet_fast.accelerate(Plain().eval())
    x, _ = data()
    expected = pspnet_fast.restore(copy.deepcopy(model))(x).argmax(1)
    backend = Recorder()

    @torch.compile(backend=backend, fullgraph=True)
    def predict(x):
        with torch.no_grad(), pspnet_fast.fuse():
            return model(x).argmax(dim=1)

    assert torch.equal(predict(x), expected)
    assert backend.has("pspnet_fast.upsample_argmax")


def test_inductor():
    x, target = data()
    model = Mixed()
    other = copy.deepcopy(model)
    expected = training_step(model, lambda x, t: F.cross_entropy(model(x), t, ignore_index=255), x, target)
    compiled = torch.compile(with_loss(pspnet_fast.accelerate(other)), fullgraph=True)
    torch.testing.assert_close(training_step(other, compiled, x, target), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["relu", "view", "source", "hook", "cast", "two"])
def test_changes_between_upsampling_and_loss(what):
    def step(low, target):
        with pspnet_fast.fuse():
            source = low * 2
            up = F.interpolate(source, (8, 8), mode="bilinear")
            if what == "relu":
                up = F.relu(up, inplace=True)
            elif what == "view":
                up[:, 0].mul_(3)
            elif what == "source":
                source.mul_(0)
            elif what == "hook":
                up.register_hook(lambda grad: grad * 2)
            elif what == "cast":
                up = up.double()
            else:
                return F.cross_entropy(up, target) + up.square().mean() + F.cross_entropy(up, target, reduction="sum")
            return F.cross_entropy(up, target)

    low, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 8, 8))
    (expected,) = torch.autograd.grad(step(low, target), low)
    loss = torch.compile(step, backend="aot_eager", fullgraph=what != "hook")(low, target)
    torch.testing.assert_close(loss, step(low, target))
    torch.testing.assert_close(torch.autograd.grad(loss, low)[0], expected)


def test_a_compiled_loss_of_an_accelerated_model():
    model = pspnet_fast.accelerate(Plain())
    x, target = data()
    loss = torch.compile(lambda out, t: F.cross_entropy(out, t, ignore_index=255), backend="aot_eager")
    expected = training_step(model, lambda x, t: F.cross_entropy(model(x), t, ignore_index=255), x, target)
    torch.testing.assert_close(training_step(model, lambda x, t: loss(model(x), t), x, target), expected)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_part_of_an_accelerated_model(fullgraph):
    x, target = data()
    model = Mixed()
    expected = training_step(model, lambda x, t: F.cross_entropy(model(x), t, ignore_index=255), x, target)
    model.norm = torch.compile(model.norm, backend="aot_eager", fullgraph=fullgraph)
    pspnet_fast.accelerate(model)
    torch.testing.assert_close(
        training_step(model, lambda x, t: F.cross_entropy(model(x), t, ignore_index=255), x, target), expected
    )
