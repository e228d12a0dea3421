"""A 1x1 convolution of a map that a linear layer gave, computed from what the layer was given."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from heads import Mixed, accelerated, assert_same_results, data, training_step
from pairs import Recorder
from torch import nn

import pspnet_fast
from pspnet_fast.fusion import convolution


@pytest.fixture
def projected(monkeypatch):
    """The shapes of the maps whose convolution is computed from what was projected."""
    shapes = []
    original = convolution.projected_conv2d

    def spy(s, *others):
        shapes.append(tuple(s.shape[1:]))
        return original(s, *others)

    monkeypatch.setattr(convolution, "projected_conv2d", spy)
    return shapes


class Tokens(nn.Module):
    """One linear layer over the pixels of a map, upsampled beside another map, and a 1x1 convolution of both."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 6)
        self.fuse = nn.Conv2d(10, 5, 1)

    change = late_change = staticmethod(lambda x, tokens, layer: None)
    autocast = False  # of the convolution

    def projected(self, tokens):
        return self.project(tokens)

    def forward(self, x, other):
        tokens = (x * 1).flatten(2).transpose(1, 2)
        y = self.projected(tokens)
        self.change(tokens, y, self.project)
        low = y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        up = F.interpolate(low, other.shape[2:], mode="bilinear", align_corners=False)
        self.late_change(tokens, y, self.project)
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext():
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
    expected, ours = outcome(model, *given), accelerated(model)
    for _ in range(2):  # in later calls modules that upsample nothing run without the mode
        result = outcome(ours, *given)
        torch.testing.assert_close(result, expected)
        assert result[0].stride() == expected[0].stride()
    # With nothing at low resolution the concatenation is not deferred.
    assert projected == [(6, 4, 10)] * (2 if factor > 1 else 0)


def test_a_map_of_full_size_beside_smaller_ones(projected):
    """The largest map of SegFormer's head is interpolated to its own size."""
    model, (x, target) = Mixed().eval(), data(size=(64, 96))
    model.fuse.bias = nn.Parameter(torch.randn(8))  # which a normalisation in training would hide
    assert_same_results(model.double(), lambda m: [training_step(m, x.double(), target) for _ in range(2)])
    assert projected == [(10, 16, 24), (10, 4, 6), (10, 8, 12)] * 2


class Quiet(nn.Sequential):
    """Runs without the mode from the second call on, as it upsamples nothing."""

    def forward(self, y):
        y.data.mul_(2)


# Whether a projection is used, in eager mode and under torch.compile.
CHANGES = {
    "nothing": (lambda x, y, layer: None, True, True),
    "a write": (lambda x, y, layer: y.mul_(2), False, False),
    "a write that no version shows": (lambda x, y, layer: y.data.mul_(2), False, False),
    "other memory": (lambda x, y, layer: setattr(y, "data", y.detach() * 2), False, None),
    "a write in a quiet module": (lambda x, y, layer: layer.quiet(y), False, None),
    "a write to the bias": (lambda x, y, layer: layer.bias.detach().zero_(), False, False),
    "other layers": (lambda x, y, layer: [F.linear(x, layer.weight) for _ in range(4)], False, True),
    "a hook": (lambda x, y, layer: y.register_hook(lambda grad: grad * 2), True, False),  # which the pass leaves
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_happens_in_between(name, projected):
    model, given = Tokens().double(), inputs()
    model.project.quiet = Quiet(nn.Identity())
    model.change, used, _ = CHANGES[name]
    outcomes = []
    for m in (copy.deepcopy(model), accelerated(model)):
        with torch.no_grad():
            m.project.bias.copy_(model.project.bias)
        outcomes.append([outcome(m, *given) for _ in range(3)])
    torch.testing.assert_close(*outcomes)
    if name != "a write to the bias":  # the first call gives the same bits as later ones
        torch.testing.assert_close(outcomes[1][1:], outcomes[1][:2], rtol=0, atol=0)
    assert bool(projected[1:]) == used


@pytest.mark.parametrize("name", [name for name, (_, _, used) in CHANGES.items() if used is not None])
@pytest.mark.parametrize("seen", ["by the pass", "by the mode"])
@pytest.mark.usefixtures("fresh_compiler")
def test_under_compile_options(seen, name, projected):
    model, given = Tokens().double(), inputs()
    model.change, _, used = CHANGES[name]
    expected = outcome(copy.deepcopy(model), *given)
    if seen == "by the mode":
        pspnet_fast.accelerate(model)
    compiled = torch.compile(model, backend=Recorder(pspnet_fast.compile_options()), fullgraph=True)
    torch.testing.assert_close(outcome(compiled, *given), expected)
    assert bool(projected) == used


LATE = pytest.mark.parametrize("when", ["change", "late_change"])


@LATE
def test_a_write_to_the_weight(when):
    """The result is the stock model's; the layer's own gradient is an error, as in that."""
    model, given = Tokens().double(), inputs()
    setattr(model, when, lambda x, y, layer: layer.weight.detach().mul_(2))
    expected = copy.deepcopy(model)(*given)
    found = pspnet_fast.accelerate(model)(*given)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@LATE
def test_a_write_to_what_was_projected(when):
    """The layer keeps a copy of it, as it is not contiguous."""
    model, given = Tokens().double(), inputs()
    setattr(model, when, lambda x, y, layer: x.detach().mul_(2))
    assert_same_results(model, lambda m: outcome(m, *given))


@pytest.mark.parametrize("frozen", ["project", "all"])
def test_what_autograd_does_not_keep_may_be_written_to(frozen, projected):
    """Before backward as well: a frozen layer keeps no input."""
    model, (x, other) = Tokens().double(), inputs()
    model.project.requires_grad_(False)

    def run(m):
        written = []
        m.late_change = lambda x, y, layer: written.append(x)
        result = m(x if frozen == "project" else x.detach(), other)
        written[0].detach().mul_(3)
        return torch.autograd.grad(result.square().sum(), [other, *m.fuse.parameters()])

    assert_same_results(model, run)
    assert not projected


def test_the_gradient_of_the_layers_result():
    """As class activation maps are made of: the layer's output, caught by a hook."""
    x, other = (torch.ones_like(t).requires_grad_() for t in inputs())

    def run(m):
        caught = []
        m.project.register_forward_hook(lambda module, args, y: caught.append(y))
        return torch.autograd.grad(m(x, other).square().sum(), [*caught, x])

    assert_same_results(Tokens().double(), run)


def test_a_sharded_weight_that_is_gone(projected):
    model, given = Tokens().double(), inputs()
    expected = model(*given)
    model.change = lambda x, y, layer: layer.weight.untyped_storage().resize_(0)
    torch.testing.assert_close(pspnet_fast.accelerate(model)(*given), expected)
    assert not projected


@pytest.mark.parametrize("where", ["all", "the convolution"])
def test_autocast(where, projected):
    model, given = Tokens(), [t.detach().float().requires_grad_() for t in inputs()]
    model.autocast = True

    def run(m):
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "all"):
            result = m(*given)
        result.float().sum().backward()
        return result

    assert_same_results(model, run, rtol=0.02, atol=0.02)
    assert not projected


def test_layers_that_are_not_over_tokens():
    """Under vmap, of a sparse layout, with a bias that broadcasts."""

    class Other(Tokens):
        def projected(self, tokens):
            torch.vmap(lambda t: F.linear(t, self.project.weight))(tokens)
            return F.linear(tokens, self.project.weight, self.project.bias[:1])

    given = inputs()
    assert_same_results(Other().double(), lambda m: outcome(m, *given))


def test_what_it_saves_is_reported():
    model, given = pspnet_fast.accelerate(Tokens().double()), inputs()
    model(*given)
    (entry,) = (e for e in model.fusion_report() if e.operator == "conv2d")
    # 6 and 4 channels at 8x20, against 3 at 4x10 and 4 at 8x20
    assert entry.flop_saved == 2 * 2 * 5 * (6 * 160 - 3 * 40)
