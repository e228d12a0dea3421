"""The same computation twice, stock and with deferred maps; what a compiled graph calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from heads import accelerated, data, training_step
from torch._dynamo.backends.common import aot_autograd

import pspnet_fast
from pspnet_fast.fusion.deferred import Deferred


def low_and_target(dtype=torch.float64):
    low = torch.randn(2, 5, 4, 6, dtype=dtype, requires_grad=True)
    return low, torch.randint(0, 5, (2, 8, 12))


def upsample(low):
    return F.interpolate(low, (8, 12), mode="bilinear", align_corners=False)


def deferred(low):
    with pspnet_fast.fuse():
        up = upsample(low)
    assert type(up) is Deferred
    return up


def is_built(x):
    return x.cell.value is not None


def outcome(make, use, low, target):
    """``use(make(low), target, low)``, and the gradient of low."""
    leaf = low.detach().clone().requires_grad_()
    x = leaf * 1  # not a leaf: it may be written to
    return use(make(x), target, x), leaf.grad


def both(use, dtype=torch.float64):
    """The outcomes with the stock map and with the deferred one."""
    given = low_and_target(dtype)
    return [outcome(make, use, *given) for make in (upsample, deferred)]


def assert_same(use, dtype=torch.float64):
    stock, fused = both(use, dtype)
    torch.testing.assert_close(fused, stock)


class Recorder:
    """A backend that runs a graph as it is, after the passes of ``options``, and remembers what it called."""

    def __init__(self, options=None):
        self.targets = []
        self.passes = list((options or {}).values())

    def __call__(self, graph, inputs):
        for change in self.passes:
            change(graph.graph)
        graph.recompile()

        def names(graph, inputs):
            self.targets += [str(node.target) for node in graph.graph.nodes]
            return graph.forward

        return aot_autograd(fw_compiler=names)(graph, inputs)

    def has(self, name):
        return any(name in target for target in self.targets)

    def upsamples(self):
        """Whether a stock upsampling is left: autograd makes gathers of it."""
        return self.has("upsample_bilinear2d") or self.has("_unsafe_index")


def with_loss(model, loss=F.cross_entropy):
    def step(x, target):
        with pspnet_fast.fuse():
            return loss(model(x), target, ignore_index=255)

    return step


def assert_same_compiled(
    model, compute=with_loss, *, stock=None, copied=accelerated, passes=None, sizes=((32, 48),), **options
):
    """Training steps of ``model`` against ``stock(x, target)``, or the loss of its logits.

    ``compute(copied(model))`` is compiled with ``options`` and the ``passes`` of compile_options. Returns the recorder.
    """
    ours, backend = copied(model), Recorder(passes)
    compiled = torch.compile(compute(ours), backend=backend, **{"fullgraph": True, **options})
    for size in sizes:
        x, target = data(size=size)
        expected = training_step(model, x, target, stock)
        torch.testing.assert_close(training_step(ours, x, target, compiled), expected)
    return backend
