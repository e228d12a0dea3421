"""``compile_options``: what Dynamo hides from the mode is fused by a pass over the graph; and what both leave."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from heads import Mixed, Plain, data, training_step
from pairs import Recorder, assert_same_compiled
from torch import nn
from torch.utils.checkpoint import checkpoint

import pspnet_fast

pytestmark = pytest.mark.usefixtures("fresh_compiler")
SEEN = pytest.mark.parametrize("seen", ["by the mode", "by the pass"])


class Own(Plain):
    """A model with its criterion: made in its forward, as in those of transformers, which hides it from the mode."""

    hidden = True
    change = staticmethod(lambda up, low: up)

    def forward(self, x, target):
        low = self.classifier(self.backbone(x).relu()) * 1
        up = self.change(self.enlarge(low, x.shape[2:]), low)
        if self.hidden:
            return nn.CrossEntropyLoss(ignore_index=255)(up, target)
        return F.cross_entropy(up, target, ignore_index=255)


CHANGES = {
    "nothing": (lambda up, low: up, True),
    "a write elsewhere": (lambda up, low: (F.relu(low + 1, inplace=True), up)[1], True),
    "a write": (lambda up, low: F.relu(up, inplace=True), False),
    "a write to a view": (lambda up, low: (up[:, :1].mul_(2), up)[1], False),
    "a write to the source": (lambda up, low: (low.mul_(0.5), up)[1], False),
    "another map": (lambda up, low: up.relu(), False),
    "a hook": (lambda up, low: (up.register_hook(lambda grad: grad * 2), up)[1], False),
    "a cast": (lambda up, low: up.double(), "by the mode"),
}


@pytest.mark.parametrize(("change", "fused"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dynamic", [False, True])
@SEEN
def test_a_criterion_whose_map_stands(seen, change, fused, dynamic):
    model = Own()
    model.change, model.hidden = change, seen == "by the pass"
    passes = pspnet_fast.compile_options() if model.hidden else {}
    backend = assert_same_compiled(model, lambda ours: ours, stock=model, passes=passes, dynamic=dynamic)
    assert backend.has("pspnet_fast.upsample_cross_entropy") == (fused in (True, seen))


class Joined(Plain):
    """A convolution over a map and two that are upsampled to its size, or copied."""

    change = staticmethod(lambda full, up, low: None)

    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(24, 8, kernel, padding=kernel // 2)

    def forward(self, x):
        high = self.backbone(x)
        low = F.avg_pool2d(high, 2)
        ups = [self.enlarge(m, high.shape[2:]) for m in (high, low)]
        full = torch.cat([high, *ups], dim=1)
        self.change(full, ups[1], low)
        return self.classifier(self.fuse(full))


JOINED = {
    "nothing": (lambda full, up, low: None, True),
    "a write elsewhere": (lambda full, up, low: (low + 1).mul_(2), True),
    "a write to the concatenation": (lambda full, up, low: full.mul_(2), False),
    "a write to the upsampled map": (lambda full, up, low: up.mul_(2), False),
    "a write to the source": (lambda full, up, low: low.mul_(2), False),
    "a write by its keyword": (lambda full, up, low: F.relu(input=low, inplace=True), False),
    "a write to many": (lambda full, up, low: torch._foreach_mul_([up, low], 2), False),
    "a hook": (lambda full, up, low: up.register_hook(lambda grad: grad * 2), False),
    "a hook on the concatenation": (lambda full, up, low: full.register_hook(lambda grad: grad * 2), False),
    "a write to a view": (lambda full, up, low: torch.relu_(full[:, 2:]), False),
    "a write to data": (lambda full, up, low: up.data.mul_(2), False),
    "a write inside a function": (
        lambda full, up, low: checkpoint(lambda low: low.mul_(2), low, use_reentrant=False),
        False,
    ),
    "a write by an operator": (lambda full, up, low: torch.ops.aten.mul_.Tensor(low, 2.0), False),
    "a write through out": (lambda full, up, low: torch.cat([up.detach() * 2], 1, out=up.detach()), False),
}


def squared(model):
    return lambda x, _: model(x).square().sum()


@pytest.mark.parametrize(("change", "fused"), JOINED.values(), ids=JOINED)
@pytest.mark.parametrize(("seen", "kernel"), [("by the mode", 1), ("by the pass", 1), ("by the pass", 3)])
def test_a_convolution_whose_maps_stand(seen, kernel, change, fused):
    model = Joined(kernel)
    model.change = change
    by_the_pass = {"copied": copy.deepcopy, "passes": pspnet_fast.compile_options()}
    options = by_the_pass if seen == "by the pass" else {}
    backend = assert_same_compiled(model, squared, stock=squared(model), **options)
    assert backend.has("pspnet_fast.pyramid_conv") == fused


def test_compile_options_fuse_a_convolution_behind_a_graph_break():
    model = Mixed()
    model.backbone.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    backend = assert_same_compiled(model, passes=pspnet_fast.compile_options(), fullgraph=False)
    assert backend.has("pspnet_fast.pyramid_conv")


@SEEN
def test_an_upsampling_without_gradients_has_none(seen):
    def step(x, weight):
        low = F.avg_pool2d(x, 2)
        with pspnet_fast.fuse(conv=seen == "by the mode"):
            with torch.no_grad():
                up = F.interpolate(low, scale_factor=2, mode="bilinear")
            return F.conv2d(up, weight).square().sum()

    x, weight = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(1, 4, 1, 1, requires_grad=True)
    backend = Recorder({} if seen == "by the mode" else pspnet_fast.compile_options())
    torch.compile(step, backend=backend, fullgraph=True)(x, weight).backward()
    assert x.grad is None
    assert weight.grad is not None


@SEEN
@pytest.mark.parametrize("written", [False, True])
def test_layouts_are_kept_and_what_backward_reads(seen, written):
    """The next operator views the result, and the source is written to when it has been read."""

    def step(high, low, weight):
        low = low * 2
        with pspnet_fast.fuse(conv=seen == "by the mode"):
            full = torch.cat([high, F.interpolate(low, scale_factor=2, mode="bilinear")], 1)
            y = F.conv2d(full, weight, padding=1)
        if written:
            low.mul_(3)
        return y.view(2, -1).square().sum() + low.sum()

    inputs = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last)]
    inputs = [t.double().requires_grad_() for t in (*inputs, torch.randn(3, 8, 3, 3))]
    expected = torch.autograd.grad(step(*inputs), inputs)
    backend = Recorder({} if seen == "by the mode" else pspnet_fast.compile_options())
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)
    assert backend.upsamples() == (written and seen == "by the pass")  # which sees what is behind


@pytest.mark.parametrize("call", ["axis", "symbols", "switched off", "known"])
def test_compile_options_leave_what_they_do_not_know(call):
    def step(low, high, weight):
        maps = [F.interpolate(low, scale_factor=2, mode="bilinear"), high]
        return F.conv2d(torch.cat(maps, axis=1) if call == "axis" else torch.cat(maps, 1), weight)

    backend = Recorder(pspnet_fast.compile_options(conv=call != "switched off"))
    inputs = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16, 16), torch.randn(3, 8, 1, 1)
    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=call == "symbols")
    torch.testing.assert_close(compiled(*inputs), step(*inputs))
    assert backend.has("pspnet_fast.pyramid_conv") == (call == "known")


def test_inductor_with_options():
    model, (x, target) = Own(), data()
    compiled = torch.compile(model, fullgraph=True, options=pspnet_fast.compile_options())
    expected = training_step(model, x, target, model)
    torch.testing.assert_close(training_step(model, x, target, compiled), expected, rtol=1e-4, atol=1e-5)
