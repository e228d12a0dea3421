"""Functional transforms, tracing, export; and what stays deferred from one operator to the next."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from heads import Mixed, Plain, Pyramid, assert_same_results, data
from pairs import assert_same, deferred, is_built, low_and_target, upsample
from torch import nn

import pspnet_fast


def test_functional_transforms():
    x, target = data()

    def loss(parameters, m):
        out = torch.func.functional_call(m, parameters, (x,))
        return F.cross_entropy(out, target, ignore_index=255)

    def transformed(m):
        _, tangent = torch.func.jvp(m, (x,), (torch.ones_like(x),))
        gradients = torch.func.grad(loss)(dict(m.named_parameters()), m)
        return gradients, torch.vmap(lambda v: m(v[None]))(x), tangent

    assert_same_results(Plain().eval(), transformed)


def test_a_deferred_tensor_inside_a_transform():
    low, target = low_and_target()
    up, stock = deferred(low.detach()), upsample(low.detach())
    loss = lambda x: F.cross_entropy(x, target)  # noqa: E731
    torch.testing.assert_close(torch.func.grad(loss)(up), torch.func.grad(loss)(stock))
    torch.testing.assert_close(torch.vmap(lambda x: x.softmax(0))(up), stock.softmax(1))


def test_forward_mode():
    x, _ = data()

    def tangent(m):
        with torch.autograd.forward_ad.dual_level():
            out = m(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            return torch.autograd.forward_ad.unpack_dual(out).tangent.clone()

    assert_same_results(Plain(), tangent)


def test_tracing_and_export():
    x, _ = data()
    model = Pyramid().eval()
    expected = model(x)
    pspnet_fast.accelerate(model)
    torch.testing.assert_close(torch.jit.trace(model, x, check_trace=False)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_quantised_modules():
    quantised = torch.ao.quantization.quantize_dynamic(Mixed().eval(), {nn.Linear})
    x, _ = data()
    expected = quantised(x)
    torch.testing.assert_close(pspnet_fast.accelerate(quantised)(x) + 0, expected)


def test_a_quantised_map_is_upsampled_by_the_stock_operator():
    low = torch.quantize_per_tensor(low_and_target(torch.float32)[0].detach(), 0.1, 10, torch.quint8)
    with pspnet_fast.fuse():
        up = upsample(low)
    assert up.is_quantized
    assert torch.equal(up.int_repr(), upsample(low).int_repr())


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(lambda up, target, low: F.cross_entropy(up, target).backward())
    finally:
        torch.use_deterministic_algorithms(False)


def test_several_upsamplings_in_a_row():
    def use(up, target, low):
        with pspnet_fast.fuse():
            again = F.interpolate(up, scale_factor=2, mode="bilinear")
            same = F.interpolate(again, again.shape[2:], mode="bilinear")
        target = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
        loss = F.cross_entropy(again, target) + F.cross_entropy(same, target)
        loss.backward()
        return loss

    assert_same(use)


def test_an_interpolation_to_the_same_size_stays_deferred():
    low, target = low_and_target()
    with pspnet_fast.fuse():
        up = upsample(low)
        same = F.interpolate(up, (8, 12), mode="bilinear", align_corners=True)
        loss = F.cross_entropy(same, target)
        labels = same.argmax(1)
    assert not is_built(up)
    assert not is_built(same)
    stock = upsample(low)
    torch.testing.assert_close(loss, F.cross_entropy(stock, target))
    assert torch.equal(labels, stock.argmax(1))
    same.mul_(2)  # a copy: the map itself is left alone
    torch.testing.assert_close(up + 0, stock, rtol=0, atol=0)


def test_sums_casts_and_slices_stay_deferred():
    low, target = low_and_target()
    with pspnet_fast.fuse():
        total = upsample(low) + upsample(2 * low)
        cut = torch.cat([total, total], 1)[:, 3:8]
        loss = F.cross_entropy(total.float(), target) + F.cross_entropy(total[:, :3], target % 3)
        y = F.conv2d(cut, torch.ones(2, 5, 1, 1, dtype=torch.float64))
    assert not is_built(total)
    assert not is_built(cut)
    stock = upsample(low) + upsample(2 * low)
    expected = F.cross_entropy(stock.float(), target) + F.cross_entropy(stock[:, :3], target % 3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(y + 0, F.conv2d(torch.cat([stock, stock], 1)[:, 3:8], torch.ones(2, 5, 1, 1).double()))
