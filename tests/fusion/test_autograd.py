"""The graph of a deferred tensor is the stock one: gradients, hooks, second derivatives."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Mixed, assert_same_results, data, training_step
from pairs import assert_same, deferred, is_built, low_and_target, upsample

import pspnet_fast
from pspnet_fast.fusion.cells import LIVE


def test_gradient_by_the_full_resolution_map():
    def use(up, target, low):
        (grad,) = torch.autograd.grad(F.cross_entropy(up, target), up)
        return grad + 0

    assert_same(use)


def test_gradient_by_the_concatenated_map():
    weight = torch.randn(3, 10, 1, 1, dtype=torch.float64)
    with pspnet_fast.fuse():
        low, _ = low_and_target()
        both_maps = torch.cat([upsample(low), upsample(low)], dim=1)
        y = F.conv2d(both_maps, weight)
    (grad,) = torch.autograd.grad(y.square().sum(), both_maps)
    stock = torch.cat([upsample(low), upsample(low)], dim=1)
    (expected,) = torch.autograd.grad(F.conv2d(stock, weight).square().sum(), stock)
    torch.testing.assert_close(grad + 0, expected)


HOOKS = {
    "read": lambda up, seen: up.register_hook(lambda grad: seen.append(grad.sum())),
    "double": lambda up, seen: up.register_hook(lambda grad: grad * 2),
    "retain_grad": lambda up, seen: up.retain_grad(),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks(kind):
    def use(up, target, low):
        seen = []
        HOOKS[kind](up, seen)
        F.cross_entropy(up, target).backward()
        assert type(up) is torch.Tensor or not is_built(up)
        return seen, up.grad if kind == "retain_grad" else None

    assert_same(use)


def test_module_hooks():
    def run(m):
        m.fuse.register_forward_hook(lambda m, a, out: seen.append(out.detach().mean()))
        m.fuse.register_full_backward_hook(lambda m, i, o: seen.extend([i[0].sum(), o[0].sum()]))
        m.register_full_backward_hook(lambda m, i, o: seen.append(o[0].sum()))
        seen = []
        step = training_step(m, *batch)
        assert len(seen) == 4
        return step, seen

    batch = data()
    assert_same_results(Mixed(), run)


def test_backward_twice():
    low, target = low_and_target()
    loss = F.cross_entropy(deferred(low), target)
    loss.backward(retain_graph=True)
    once = low.grad.clone()
    loss.backward()
    torch.testing.assert_close(low.grad, 2 * once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda x, t: F.nll_loss(F.log_softmax(x, 1), t)])
def test_second_derivative(loss):
    def use(up, target, low):
        (grad,) = torch.autograd.grad(loss(up, target), low, create_graph=True)
        grad.square().sum().backward()
        return grad

    assert_same(use)


@pytest.mark.parametrize("head", HEADS)
def test_nothing_of_a_step_waits_for_the_garbage_collector(head):
    model, (x, target) = pspnet_fast.accelerate(head()), data()
    F.cross_entropy(model(x), target, ignore_index=255).backward()
    gc.collect()
    gc.disable()
    try:
        before = len(LIVE)
        F.cross_entropy(model(x), target, ignore_index=255).backward()
        assert len(LIVE) == before
    finally:
        gc.enable()


def test_two_losses_and_a_metric():
    def use(up, target, low):
        with torch.no_grad():
            accuracy = (up.argmax(1) == target).double().mean(), up.sum()
        dice = (up.softmax(1) * F.one_hot(target, 5).permute(0, 3, 1, 2)).mean()
        loss = F.cross_entropy(up, target) + F.cross_entropy(up, target, label_smoothing=0.1) + dice
        loss.backward()
        return loss, accuracy

    assert_same(use)


def test_read_without_gradients_first():
    def use(up, target, low):
        with torch.no_grad():
            up.mean()
        with torch.inference_mode():
            up.amax()
        up.square().mean().backward()

    assert_same(use)


def test_a_leaf_of_its_own():
    def use(up, target, low):
        leaf = up.detach().requires_grad_()
        (F.cross_entropy(leaf, target) + F.cross_entropy(leaf, target, reduction="sum")).backward()
        F.cross_entropy(leaf, target).backward()
        return leaf.grad + 0

    assert_same(use)
