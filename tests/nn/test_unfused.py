"""Modules that a user replaced, hooked or parametrised are called as they stand, with the plain network's results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from operator import setitem

import pytest
import torch
from network_pairs import assert_near, assert_same_step, assert_trains_alike, make_batch, make_pair, training_step
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from pspnet_fast.nn import PSPNet, PyramidPooling, heads
from pspnet_fast.nn.heads import unfusable_reason


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class ScaledPyramid(nn.Module):
    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.pyramid(x)


class WiderConv(nn.Conv2d):
    pass


def halve(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 0.5 * output


def halve_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (0.5 * inputs[0],)


def halve_gradient(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(0.5 * g for g in inputs)


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "ppm replaced": (lambda net: setattr(net, "ppm", ScaledPyramid(net.ppm)), "ppm is a ScaledPyramid"),
    "cls.0 replaced": (
        lambda net: setitem(net.cls, 0, WiderConv(1024, 128, 3, padding=1, bias=False).double()),
        "cls.0 is a WiderConv",
    ),
    "cls replaced": (lambda net: setattr(net, "cls", nn.Sequential(*net.cls, nn.Identity())), "cls is a Sequential"),
    "ppm forward replaced": (
        lambda net: setattr(net.ppm, "forward", lambda x, forward=net.ppm.forward: 0.5 * forward(x)),
        "ppm.forward was replaced",
    ),
    "ppm hook": (lambda net: net.ppm.register_forward_hook(halve), "ppm has hooks"),
    "ppm backward hook": (lambda net: net.ppm.register_full_backward_hook(halve_gradient), "ppm has hooks"),
    "cls pre-hook": (lambda net: net.cls.register_forward_pre_hook(halve_input), "cls has hooks"),
    "cls.0 pre-hook": (lambda net: net.cls[0].register_forward_pre_hook(halve_input), "cls.0 has hooks"),
    "cls.0 parametrized": (
        lambda net: parametrize.register_parametrization(net.cls[0], "weight", Doubled()),
        "cls.0 is a ParametrizedConv2d",
    ),
    "cls.0 dilated": (
        lambda net: vars(net.cls[0]).update(padding=(2, 2), dilation=(2, 2)),
        "cls.0 is not a 1x1 or 3x3 convolution",
    ),
    "level hook": (lambda net: net.ppm.features[2].register_forward_hook(halve), "ppm.features.2 has hooks"),
    "pooling hook": (lambda net: net.ppm.features[2][0].register_forward_hook(halve), "ppm.features.2.0 has hooks"),
    "other pooling": (
        lambda net: setitem(net.ppm.features[1], 0, nn.AdaptiveMaxPool2d(2)),
        "ppm.features.1 does not begin with a pooling",
    ),
    "other bin": (
        lambda net: setitem(net.ppm.features[1], 0, nn.AdaptiveAvgPool2d(4)),
        "ppm.features.1.0 pools to 4, not 2",
    ),
    "other level convolution": (
        lambda net: setitem(net.ppm.features[3], 1, nn.Conv2d(512, 128, 3, bias=False).double()),
        "ppm.features.3.1 is not a 1x1 convolution",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules_are_called(change: str, caplog: pytest.LogCaptureFixture) -> None:
    apply, reason = CHANGES[change]
    fast, plain = make_pair()
    x, y = make_batch(batch=2, size=(33, 25))
    untouched = plain.eval()(x)
    for net in (fast, plain):
        torch.manual_seed(3)
        apply(net)

    found = unfusable_reason(fast.ppm, fast.cls)
    assert found is not None
    assert found.startswith(reason)
    with caplog.at_level(logging.DEBUG, logger="pspnet_fast"):
        logits, step = fast.eval()(x), training_step(fast, x, y)
    messages = [record.getMessage() for record in caplog.records]
    assert any(found in message for message in messages)
    assert len(messages) <= 2  # said once by the network, once by the pyramid where it is the pyramid's own

    expected = plain.eval()(x)
    assert_near(logits, expected, 1e-10)
    assert_same_step(step, training_step(plain, x, y))
    no_effect_on_logits = ("backward hook", "cls replaced")
    assert change.endswith(no_effect_on_logits) or not torch.allclose(logits, untouched, rtol=1e-3)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    calls: list[str] = []
    for module, name in (
        (heads, "pyramid_conv"),
        (heads, "pyramid_conv_norm_relu"),
        (heads, "pyramid_pool_through"),
        (heads, "pyramid_levels"),
    ):
        operator = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _op=operator, _n=name, **k: calls.append(_n) or _op(*a, **k))
    return calls


def test_an_untouched_network_is_fused(fused_calls: list[str]) -> None:
    fast, _ = make_pair()
    fast.eval()(make_batch()[0])
    assert fused_calls == ["pyramid_pool_through", "pyramid_conv"]


def test_modules_behind_the_pooling_may_be_hooked(fused_calls: list[str]) -> None:
    fast, plain = make_pair()
    for net in (fast, plain):
        net.ppm.features[0][1].register_forward_hook(halve)
        net.ppm.features[3][3].register_forward_hook(halve)
        net.cls[1].register_forward_pre_hook(halve_input)
        net.cls[4].register_full_backward_hook(halve_gradient)
        net.aux.register_forward_hook(halve)
    assert_trains_alike(fast, plain)
    assert fused_calls == ["pyramid_pool_through", "pyramid_conv"]


def test_new_class_layers_stay_fused(fused_calls: list[str]) -> None:
    fast, plain = make_pair()
    for net in (fast, plain):
        torch.manual_seed(3)
        net.cls[4] = nn.Conv2d(128, 5, 1).double()
        net.aux[4] = nn.Conv2d(64, 5, 1).double()
    assert_trains_alike(fast, plain)
    assert fused_calls == ["pyramid_pool_through", "pyramid_conv"]


def test_global_hooks_see_every_module() -> None:
    fast, _ = make_pair()
    seen: set[nn.Module] = set()
    with register_module_forward_hook(lambda module, inputs, output: seen.add(module)):
        fast.eval()(make_batch()[0])
    called = {module for module in fast.modules() if next(module.children(), None) is None}
    assert called - seen <= {*fast.aux.modules(), fast.criterion}
    assert unfusable_reason(fast.ppm, fast.cls) is None  # the hook is gone


def test_pyramid_alone() -> None:
    fast, plain = make_pair()
    x = torch.randn(2, 512, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fast.ppm.eval()(x), plain.ppm.eval()(x), rtol=1e-10, atol=1e-10)
    again, levels = fast.ppm.forward_levels(x)
    torch.testing.assert_close(again, x, rtol=0, atol=0)
    assert levels.shape == (2, 128, 50)
    expected = torch.cat([feature(x).flatten(2) for feature in plain.ppm.features], dim=2)
    torch.testing.assert_close(levels, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="batch of at least 2"):
        PyramidPooling(8, 2).train()(torch.randn(1, 8, 6, 6))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_inference_applies_frozen_statistics(norm: str, channels_last: bool, fused_calls: list[str]) -> None:
    fast, plain = make_pair() if norm == "batch" else (PSPNet(layers=18, pretrained=False, norm="group").double(),) * 2
    x = make_batch(batch=1)[0]
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected = plain.eval()(x)
    fused_calls.clear()
    with torch.no_grad():
        assert_near(fast.eval()(x), expected, 1e-10)
    levels, conv = (
        ("pyramid_levels", "pyramid_conv_norm_relu") if norm == "batch" else ("pyramid_pool_through", "pyramid_conv")
    )
    assert fused_calls == [levels, conv]


@pytest.mark.parametrize("name", ["ppm.features.1.1", "ppm.features.1.2", "ppm.features.1.3", "cls.1", "cls.2"])
def test_inference_calls_a_hooked_module(name: str) -> None:
    fast, plain = make_pair()
    x = make_batch(batch=1)[0]
    for net in (fast, plain):
        net.get_submodule(name).register_forward_hook(halve)
    with torch.no_grad():
        assert_near(fast.eval()(x), plain.eval()(x), 1e-10)


def test_inference_without_auxiliary_head() -> None:
    fast, plain = make_pair()
    del fast.aux
    x = make_batch()[0]
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=1e-10, atol=1e-10)


def test_no_pyramid_attribute_without_pyramid() -> None:
    net = PSPNet(layers=18, use_ppm=False, pretrained=False)
    assert not hasattr(net, "ppm")
    assert net.head_modules() == [net.cls, net.aux]
