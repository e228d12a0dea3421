"""accelerate, restore, explain and the report."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Mixed, Plain, Pyramid, assert_same_results, data, fused_operators, training_step
from torch import nn

import pspnet_fast
from pspnet_fast.fusion.deferred import Deferred


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_are_the_original_s(head, dtype, training):
    x, target = data()
    model = head().to(dtype).train(training)
    ours = assert_same_results(model, lambda m: training_step(m, x.to(dtype), target))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(model.named_buffers()))
    fused = [operator for operator, _ in fused_operators(ours)]
    assert "cross_entropy" in fused
    assert ("conv2d" in fused) == (head is not Plain)


def test_only_the_instance_is_changed():
    stock_class = dict(vars(Mixed))
    functions = F.interpolate, F.cross_entropy, torch.cat, torch.conv2d
    model, bystander = Mixed(), Mixed()
    keys, attributes = list(model.state_dict()), set(vars(model))
    modules = [type(m) for m in model.modules()]

    assert pspnet_fast.accelerate(model) is model

    assert dict(vars(Mixed)) == stock_class
    assert (F.interpolate, F.cross_entropy, torch.cat, torch.conv2d) == functions
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == modules
    assert type(bystander(data()[0])) is torch.Tensor
    assert inspect.signature(model.forward) == inspect.signature(bystander.forward)
    assert inspect.isfunction(model.forward.__func__)
    assert set(vars(pspnet_fast.restore(model))) == attributes
    assert type(model(data()[0])) is torch.Tensor


def test_accelerating_twice_is_accelerating_once():
    model = pspnet_fast.accelerate(pspnet_fast.accelerate(Plain()), loss=False)
    assert model.fusion_report.options == {"loss": False, "conv": True, "argmax": True}
    assert "forward" not in vars(pspnet_fast.restore(model))
    pspnet_fast.restore(model)  # of a model that is not accelerated: nothing happens


def test_a_replaced_forward_is_kept():
    model, calls = Plain(), []
    original = model.forward

    def forward(x):
        calls.append(type(x))
        return original(x)

    model.forward = forward
    x, target = data()
    loss = F.cross_entropy(pspnet_fast.accelerate(model)(x), target, ignore_index=255)
    assert len(calls) == 1
    assert ("cross_entropy", "upsample_cross_entropy") in fused_operators(model)
    assert pspnet_fast.restore(model).forward is forward
    torch.testing.assert_close(F.cross_entropy(model(x), target, ignore_index=255), loss)


@pytest.mark.parametrize(("option", "operator"), [("loss", "cross_entropy"), ("conv", "conv2d"), ("argmax", "argmax")])
def test_rules_can_be_switched_off(option, operator):
    x, target = data()
    model = pspnet_fast.accelerate(Mixed(), **{option: False})
    out = model(x)
    F.cross_entropy(out, target, ignore_index=255)
    out.argmax(1)
    fused = {operator for operator, _ in fused_operators(model)} - {"interpolate"}
    assert fused == {"cross_entropy", "conv2d", "argmax"} - {operator}


def test_copies_are_accelerated_and_bound_to_themselves():
    model = pspnet_fast.accelerate(Mixed())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.classifier.weight.zero_()
        twin.classifier.bias.fill_(3)
    x, _ = data()
    assert torch.equal(twin(x), torch.full_like(twin(x), 3))
    assert twin.forward.__self__ is twin
    assert len(twin.fusion_report()) > 0
    assert len(model.fusion_report()) == 0


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
def test_a_pickled_model_is_the_plain_model(save):
    model, (x, _), buffer = pspnet_fast.accelerate(Mixed().eval()), data(), io.BytesIO()
    expected = model(x) + 0
    save(model, buffer)
    assert b"pspnet_fast" not in buffer.getvalue()  # it loads where this package is not installed
    buffer.seek(0)
    loaded = pickle.load(buffer) if save is pickle.dump else torch.load(buffer, weights_only=False)
    assert type(loaded(x)) is torch.Tensor
    torch.testing.assert_close(loaded(x), expected)
    assert loaded.fusion_report() == {}
    out = pspnet_fast.accelerate(loaded)(x)
    assert type(out) is Deferred
    torch.testing.assert_close(out + 0, expected)


def test_a_data_parallel_replica_runs_its_own_weights():
    model = pspnet_fast.accelerate(Plain())
    replica = model._replicate_for_data_parallel()
    assert replica.forward.__self__ is replica
    wrapped = nn.DataParallel(nn.Sequential(model))
    assert type(wrapped(data()[0])) is Deferred  # without a GPU it calls the module itself


def test_the_report_says_where_and_why():
    model, (x, target) = Mixed(), data()
    out = pspnet_fast.accelerate(model)(x)
    F.cross_entropy(out, target, ignore_index=255)
    out.softmax(1).sum()
    entries = {(e.module, e.operator, e.fused): e for e in model.fusion_report()}

    conv = entries["fuse", "conv2d", True]
    pixels = 2 * 8 * 12
    assert conv.calls == 1
    # Two of three maps are multiplied at 1/4 and 1/16 of the pixels.
    assert conv.flop_saved == 2 * 8 * 10 * pixels * (3 / 4 + 15 / 16)
    assert conv.bytes_saved == 4 * pixels * (30 + 20)
    here = next(e for key, e in entries.items() if key[1:] == ("cross_entropy", True))
    assert here.module.startswith("test_accelerate.py:")
    assert here.bytes_saved == 2 * 4 * 2 * 5 * 32 * 48  # the map and its log-softmax
    refused = {e.reason.split(" in ")[0] for e in model.fusion_report() if not e.fused}
    assert refused == {"(8, 12) to (8, 12) is no enlargement", "aten.sum"}

    text = str(model.fusion_report())
    assert "upsample_cross_entropy" in text
    assert "not fused: aten.sum" in text
    assert model.fusion_report().as_dicts()[0].keys() >= {"module", "operator", "fused", "reason", "bytes_saved"}
    model.fusion_report().clear()
    assert len(model.fusion_report()) == 0


@pytest.mark.parametrize("accelerated", [False, True])
def test_explain_runs_once_and_leaves_no_trace(accelerated):
    model = Pyramid().eval()
    if accelerated:
        pspnet_fast.accelerate(model)
    attributes = set(vars(model))
    report = pspnet_fast.explain(model, data()[0])
    fused = [(e.module, e.operator) for e in report if e.fused]
    assert fused == [("Pyramid", "interpolate"), ("bottleneck", "conv2d")]
    assert set(vars(model)) == attributes
    assert not accelerated or len(model.fusion_report()) == 0


def test_explain_names_what_cannot_be_fused():
    class Nearest(Plain):
        def forward(self, x):
            y = F.interpolate(self.backbone(x), scale_factor=2, mode="nearest")
            return F.interpolate(y, size=(3, 3), mode="bilinear")

    reasons = {e.reason for e in pspnet_fast.explain(Nearest(), data()[0]) if not e.fused}
    assert any("mode='nearest'" in r for r in reasons)
    assert any("(16, 24) to (3, 3) is no enlargement" in r for r in reasons)


def test_nested_and_threaded_use():
    models = [pspnet_fast.accelerate(head().eval()) for head in HEADS]
    x, _ = data()
    expected = [pspnet_fast.restore(copy.deepcopy(m))(x) for m in models]

    def work(_):
        for model, value in zip(models * 10, expected * 10, strict=True):
            with pspnet_fast.fuse(), pspnet_fast.fuse(conv=False):
                out = model(x)
            torch.testing.assert_close(out + 0, value)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_an_exception_in_forward_ends_the_block():
    class Broken(Plain):
        def forward(self, x):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        pspnet_fast.accelerate(Broken())(data()[0])
    assert type(F.interpolate(data()[0], scale_factor=2, mode="bilinear")) is torch.Tensor
