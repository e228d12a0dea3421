"""A 1x1 convolution of a map that a linear layer gave, computed from what the layer was given."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from heads import Mixed, data
from pairs import Recorder
from torch import nn

import pspnet_fast
from pspnet_fast.fusion import pointwise
from pspnet_fast.fusion.cost import projection_pays
from pspnet_fast.fusion.projection import Projection
from pspnet_fast.fusion.segments import Geometry, Segment


@pytest.fixture
def projected(monkeypatch):
    """The shapes of the maps whose convolution is computed from what was projected."""
    shapes = []
    original = pointwise.projected_conv2d

    def spy(s, *others):
        shapes.append(tuple(s.shape[1:]))
        return original(s, *others)

    monkeypatch.setattr(pointwise, "projected_conv2d", spy)
    return shapes


class Tokens(nn.Module):
    """One linear layer over the pixels of a map, upsampled beside another map, and a 1x1 convolution of both."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 6)
        self.fuse = nn.Conv2d(10, 5, 1)

    change = staticmethod(lambda x, tokens, layer: None)

    def forward(self, x, other):
        tokens = x.flatten(2).transpose(1, 2)
        y = self.project(tokens)
        self.change(tokens, y, self.project)
        low = y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        up = F.interpolate(low, other.shape[2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([up, other], dim=1))


def inputs(factor=2):
    x, other = torch.randn(2, 3, 4, 10), torch.randn(2, 4, 4 * factor, 10 * factor)
    return [(t.double() * 1).requires_grad_() for t in (x, other)]


def outcome(model, x, other):
    model.zero_grad()
    result = model(x * 1, other * 1)
    gradients = torch.autograd.grad(result.square().sum(), [x, other, *model.parameters()])
    return result.detach(), gradients


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inner_bias", [True, False])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(factor, inner_bias, bias, form, projected):
    model = Tokens().double()
    if not bias:
        model.fuse.bias = None
    if not inner_bias:
        model.project.bias = None
    given = [t.detach().to(memory_format=form).requires_grad_() for t in inputs(factor)]
    expected = outcome(copy.deepcopy(model), *given)
    accelerated = pspnet_fast.accelerate(model)
    for _ in range(2):  # in later calls modules that upsample nothing run without the mode
        result = outcome(accelerated, *given)
        torch.testing.assert_close(result, expected)
        assert result[0].stride() == expected[0].stride()
    # With nothing at low resolution the concatenation is not deferred.
    assert projected == [(6, 4, 10)] * (2 if factor > 1 else 0)


def test_a_map_of_full_size_beside_smaller_ones(projected):
    """The largest map of SegFormer's head is interpolated to its own size."""
    model, (x, _) = Mixed().double(), data(size=(64, 96))
    accelerated = pspnet_fast.accelerate(copy.deepcopy(model))
    x = x.double().requires_grad_()
    for _ in range(2):
        results = []
        for m in (model, accelerated):
            m.zero_grad()
            m(x).square().sum().backward()
            results.append([p.grad.clone() for p in m.parameters()])
        torch.testing.assert_close(*results)
    assert projected == [(10, 16, 24), (10, 4, 6), (10, 8, 12)] * 2


def _write(x, y, layer):
    y.mul_(2)


def _write_before(x, y, layer):
    with torch.no_grad():
        x.mul_(2)


def _write_unseen(x, y, layer):
    y.data.mul_(2)


def _write_to_the_weight(x, y, layer):
    with torch.no_grad():
        layer.weight.mul_(2)


def _hook(x, y, layer):
    y.register_hook(lambda grad: grad * 2)


def _four_more(x, y, layer):
    for _ in range(4):
        F.linear(x, layer.weight)


CHANGES = {
    "a write to the result": (_write, False),
    "a write to what was projected": (_write_before, False),
    "a write that no version shows": (_write_unseen, False),
    "a write to the weight": (_write_to_the_weight, False),
    "other layers": (_four_more, False),
    "a hook": (_hook, True),
}
# The pass sees all layers, and leaves what is hooked.
COMPILED = {
    **CHANGES,
    "nothing": (lambda x, y, layer: None, True),
    "other layers": (_four_more, True),
    "a hook": (_hook, False),
}


@pytest.mark.parametrize(("change", "used"), CHANGES.values(), ids=CHANGES)
def test_what_happens_in_between(change, used, projected):
    model, given = Tokens().double(), inputs()
    model.change = change
    stock = copy.deepcopy(model)
    results = [outcome_of_change(m, m, given) for m in (stock, pspnet_fast.accelerate(model))]
    torch.testing.assert_close(*results)
    assert bool(projected) == used


def outcome_of_change(model, call, given):
    """What the change writes to is not saved for a gradient."""
    x, other = given
    model.project.requires_grad_(model.change not in (_write_before, _write_to_the_weight))
    leaves = [other, *(p for p in model.parameters() if p.requires_grad)]
    if model.change is _write_to_the_weight:
        x = x.detach()
    else:
        leaves.append(x)
    y = call(x * 1, other * 1)
    return y.detach(), torch.autograd.grad(y.square().sum(), leaves)


@pytest.mark.parametrize(("change", "used"), COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("seen", ["by the pass", "by the mode"])
def test_under_compile_options(seen, change, used, projected):
    torch._dynamo.reset()
    model, given = Tokens().double(), inputs()
    model.change = change
    stock = copy.deepcopy(model)
    expected = outcome_of_change(stock, stock, given)
    if seen == "by the mode":
        pspnet_fast.accelerate(model)
    compiled = torch.compile(model, backend=Recorder(pspnet_fast.compile_options()), fullgraph=True)
    torch.testing.assert_close(outcome_of_change(model, compiled, given), expected)
    assert bool(projected) == used


@pytest.mark.parametrize("when", ["before the convolution", "before backward"])
def test_a_write_to_what_was_projected_after_the_upsampling(when):
    layer, weight = nn.Linear(3, 6).double().requires_grad_(False), torch.randn(5, 6, 1, 1).double().requires_grad_()

    def step(low):
        x = low.flatten(2).transpose(1, 2) * 1
        with pspnet_fast.fuse():
            y = layer(x).transpose(1, 2).reshape(2, 6, 4, 10)
            up = F.interpolate(y, scale_factor=2, mode="bilinear")
            if when == "before the convolution":
                x.mul_(3)
            result = F.conv2d(up, weight)
            if when == "before backward":
                x.mul_(3)
        return torch.autograd.grad(result.square().sum() + x.sum(), [low, weight])

    (low, _) = inputs()
    found = step(low)
    with torch._C.DisableTorchFunction():
        expected = step(low)
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_the_layers_result():
    """As class activation maps are made of: the layer's output, caught by a hook."""
    gradients = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = Tokens().double()
        caught = []
        model.project.register_forward_hook(lambda module, args, y, caught=caught: caught.append(y))
        if accelerated:
            pspnet_fast.accelerate(model)
        x, other = (torch.ones_like(t).requires_grad_() for t in inputs())
        gradients.append(torch.autograd.grad(model(x, other).square().sum(), [*caught, x]))
    torch.testing.assert_close(*gradients)


def test_a_sharded_weight_that_is_gone(projected):
    layer, weight = nn.Linear(3, 6), torch.randn(5, 6, 1, 1)
    with pspnet_fast.fuse():
        y = layer(torch.randn(2, 40, 3)).transpose(1, 2).reshape(2, 6, 4, 10)
        expected = F.conv2d(F.interpolate(y.clone(), scale_factor=2, mode="bilinear"), weight)
        layer.weight.untyped_storage().resize_(0)
        found = F.conv2d(F.interpolate(y, scale_factor=2, mode="bilinear"), weight)
    torch.testing.assert_close(found, expected)
    assert not projected


@pytest.mark.parametrize("where", ["all", "the convolution"])
def test_autocast(where, projected):
    model, (x, other) = Tokens(), (t.detach().float() for t in inputs())
    results = []
    for m in (model, copy.deepcopy(model)):
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "all"), pspnet_fast.fuse(conv=m is not model):
            y = m.project(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 6, 4, 10)
            full = torch.cat([F.interpolate(y, scale_factor=2, mode="bilinear"), other], 1)
            with torch.autocast("cpu", torch.bfloat16):
                results.append(m.fuse(full))
    torch.testing.assert_close(results[1], results[0], rtol=0.02, atol=0.02)
    assert not projected


def test_what_it_saves_is_reported():
    model, given = pspnet_fast.accelerate(Tokens().double()), inputs()
    model(*given)
    (entry,) = (e for e in model.fusion_report() if e.operator == "conv2d")
    # 6 and 4 channels at 8x20, against 3 at 4x10 and 4 at 8x20
    assert entry.flop_saved == 2 * 2 * 5 * (6 * 160 - 3 * 40)


@pytest.mark.parametrize(
    ("before", "side", "pays"), [(64, 128, True), (320, 32, True), (512, 16, False), (768, 128, False)]
)
def test_cost(before, side, pays, monkeypatch):
    monkeypatch.undo()  # conftest.py fuses at any size
    projection = Projection(torch.empty(1), torch.empty(768, before), None, 0)
    segment = Segment(
        torch.empty(1, 768, 1, 1).expand(2, 768, side, side), Geometry((side, side), (128, 128), False), True
    )
    assert not projection_pays(segment, 768)
    segment = Segment(segment.tensor, segment.geometry, True, projection)
    assert projection_pays(segment, 768) == pays
