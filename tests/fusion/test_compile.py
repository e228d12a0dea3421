"""torch.compile: right always, fullgraph where the stock model is, and fused inside the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Mixed, Plain, Pyramid, accelerated, data, training_step
from pairs import Recorder, assert_same_compiled, with_loss
from torch import nn

import pspnet_fast
from pspnet_fast.backend import kernels
from pspnet_fast.fusion.segments import Geometry, Resize, enlargement
from pspnet_fast.fusion.traced import TracedFuse

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model(head, fullgraph):
    model, backend = head(), Recorder()
    ours, (x, target) = accelerated(model), data()
    compiled = torch.compile(ours, backend=backend, fullgraph=fullgraph)
    found = training_step(ours, x, target, lambda x, t: F.cross_entropy(compiled(x), t, ignore_index=255))
    torch.testing.assert_close(found, training_step(model, x, target))
    assert backend.has("pspnet_fast.pyramid_conv") == (head is not Plain)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_what_a_1x1_convolution_makes_of_levels_is_added_in_one_call(form):
    model, backend = Mixed().to(memory_format=form), Recorder()
    x, target = data(size=(80, 96))
    x = x.contiguous(memory_format=form)
    expected = training_step(model, x, target)
    for compute in (with_loss(model), torch.compile(with_loss(model), backend=backend, fullgraph=True)):
        torch.testing.assert_close(training_step(model, x, target, compute), expected)
    assert backend.has("pspnet_fast.upsample_add") == ("cpu" in kernels("upsample_add"))
    # The map that has the full size already is copied: nothing of an interpolation is left.
    assert backend.upsamples() == (not backend.has("pspnet_fast.upsample_add"))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_step_with_its_loss(head, dynamic):
    backend = assert_same_compiled(head(), sizes=((32, 40), (32, 48)), dynamic=dynamic)
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    assert not backend.upsamples() or head is not Plain


LABELS = {
    "argmax": lambda out: out.argmax(dim=1),
    "softmax": lambda out: out.softmax(1).argmax(1, keepdim=True),
    "log_softmax": lambda out: torch.argmax(F.log_softmax(out, dim=1), 1),
    "max": lambda out: out.max(1)[1],
    "max, named": lambda out: torch.max(out, dim=1, keepdim=True).indices,
    "max with values": lambda out: tuple(out.max(1)),
    "topk": lambda out: out.topk(1, dim=1)[1],
    "cast": lambda out: out.double().argmax(1),
    "sum": lambda out: (out + out).argmax(1),
}


@pytest.mark.parametrize("read", LABELS.values(), ids=LABELS)
def test_compiled_labels(read):
    model, (x, _), backend = Plain().eval(), data(), Recorder()
    ours = accelerated(model)

    @torch.compile(backend=backend, fullgraph=True)
    def predict(x):
        with torch.no_grad(), pspnet_fast.fuse():
            return read(ours(x))

    torch.testing.assert_close(predict(x), read(model(x)))
    assert backend.has("pspnet_fast.upsample_argmax")


def test_compiled_nll_loss():
    def nll_loss(out, target, **options):
        return F.nll_loss(F.log_softmax(out, dim=1), target, **options)

    backend = assert_same_compiled(Plain(), lambda model: with_loss(model, nll_loss))
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    assert not backend.upsamples()


class OneByOne(Pyramid):
    """Every level is upsampled before the next is normalised, which counts a batch."""

    def decode(self, high):
        maps = [high]
        for convolve, k in zip(self.levels, (1, 2, 3, 6), strict=True):
            maps.append(self.enlarge(convolve(F.adaptive_avg_pool2d(high, k)), high.shape[2:]))
        return self.bottleneck(torch.cat(maps, dim=1)).relu()


@pytest.mark.parametrize("head", [Pyramid, OneByOne])
def test_a_write_to_a_new_tensor_or_a_counter_disturbs_nothing(head):
    """ReLU in place behind a normalisation, as the levels of pyramid pooling have it."""
    model = head()
    model.levels = nn.ModuleList(nn.Sequential(c, nn.BatchNorm2d(2), nn.ReLU(inplace=True)) for c in model.levels)
    backend = assert_same_compiled(model)
    assert backend.has("pspnet_fast.pyramid_conv")
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    assert not backend.upsamples()  # no level


TRANSFORMED = {
    "the gradient of a loss": lambda low, target: torch.func.grad(
        lambda q: F.cross_entropy(F.interpolate(q, (8, 8), mode="bilinear"), target)
    )(low),
    "a write under vmap": lambda low, target: torch.vmap(lambda q: q.mul_(2))(low * 1),
}


@pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)
def test_transforms_inside_a_compiled_function(transformed):
    def step(low, target):
        with pspnet_fast.fuse():
            up = F.interpolate(low, (8, 8), mode="bilinear")
            return transformed(low, target), F.cross_entropy(up, target)

    low, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(low, target), step(low, target))


def test_behind_a_graph_break_the_block_computes_nothing_twice():
    """Python goes on with the mode that was traced: only the compiler drops what nobody reads."""
    low, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    with TracedFuse() as mode:
        loss = F.cross_entropy(F.interpolate(low, (8, 8), mode="bilinear"), target)
    torch.testing.assert_close(loss, F.cross_entropy(F.interpolate(low, (8, 8), mode="bilinear"), target))
    assert mode.records == []


def test_a_graph_break_inside_the_model():
    model = Mixed()
    model.norm.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    backend = assert_same_compiled(model, fullgraph=False)
    # The block does not outlive the trace, where all maps that it remembers would be results.
    assert not (backend.has("pspnet_fast.upsample_add") and backend.upsamples())


def test_inductor():
    model, (x, target) = Mixed(), data()
    ours = accelerated(model)
    compiled = torch.compile(with_loss(ours), fullgraph=True)
    found = training_step(ours, x, target, compiled)
    torch.testing.assert_close(found, training_step(model, x, target), rtol=1e-4, atol=1e-5)


def test_two_losses_and_another_reader():
    def step(low, target):
        with pspnet_fast.fuse():
            up = F.interpolate(low * 2, (8, 8), mode="bilinear")
            return F.cross_entropy(up, target) + up.square().mean() + F.cross_entropy(up, target, reduction="sum")

    low, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 8, 8))
    losses = step(low, target), torch.compile(step, backend="aot_eager", fullgraph=True)(low, target)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, low) for loss in losses))


def test_a_factor_that_is_not_the_ratio_of_the_sizes():
    """PyTorch uses the factor, so that the values move even where the sizes agree."""
    shape = torch.Size((1, 1, 8, 8))
    assert enlargement(shape, shape, Resize(scale_factor=1.1, mode="bilinear")) is None
    assert enlargement(shape, shape, Resize(scale_factor=1.0, mode="bilinear")) == Geometry((8, 8), (8, 8), False)


def test_a_compiled_loss_of_an_accelerated_model():
    model, (x, target) = Plain(), data()
    ours = accelerated(model)
    loss = torch.compile(lambda out, t: F.cross_entropy(out, t, ignore_index=255), backend="aot_eager")
    found = training_step(ours, x, target, lambda x, t: loss(ours(x), t))
    torch.testing.assert_close(found, training_step(model, x, target))


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_part_of_an_accelerated_model(fullgraph):
    model, (x, target) = Mixed(), data()
    expected = training_step(model, x, target)
    model.norm = torch.compile(model.norm, backend="aot_eager", fullgraph=fullgraph)
    _, gradients = training_step(pspnet_fast.accelerate(model), x, target)
    torch.testing.assert_close(list(gradients.values()), list(expected[1].values()))
