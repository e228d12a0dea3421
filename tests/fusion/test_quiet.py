"""Modules that upsample nothing run without the mode, and nothing else differs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from heads import Plain, accelerated, data, fused_operators
from torch import nn

import pspnet_fast
from pspnet_fast.fusion import is_accelerated
from pspnet_fast.fusion.cells import LIVE
from pspnet_fast.fusion.mode import Fuse


class Block(nn.Module):
    """A convolution that may write to what it is given, and may upsample."""

    def __init__(self, channels: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()
        self.inplace, self.scale = inplace, 1

    def forward(self, x):
        x = self.conv(self.relu(x.mul_(2) if self.inplace else x))
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear") if self.scale > 1 else x


class Network(Plain):
    """An encoder in a list, whose blocks upsample nothing, and a decoder's block after an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Sequential(Block(3), Block(8)), nn.Sequential(Block(8))])
        self.decoder = nn.Sequential(Block(8, inplace=True))

    def forward(self, x):
        y = F.max_pool2d(x, 4)
        for stage in self.encoder:
            y = stage(y)
        up = F.interpolate(y, x.shape[2:], mode="bilinear")  # read after the decoder writes to y
        return F.interpolate(self.classifier(self.decoder(y)), x.shape[2:], mode="bilinear") + up[:, :5]


@pytest.fixture(autouse=True)
def _nothing_of_other_tests():
    """A failed assertion, or one that is expected, keeps deferred tensors alive."""
    LIVE.clear()


@pytest.fixture
def x():
    return data()[0]


@pytest.fixture
def model():
    return pspnet_fast.accelerate(Network())


@pytest.fixture
def seen(monkeypatch):
    """The names of the functions that the mode is given."""
    names: list[str] = []
    original = Fuse.__torch_function__

    def spy(self, func, *args, **kwargs):
        names.append(func.__name__)
        return original(self, func, *args, **kwargs)

    monkeypatch.setattr(Fuse, "__torch_function__", spy)
    return names


def calls(seen, model, *inputs):
    """The functions that the mode is given in a call, and the result's values."""
    seen.clear()
    result = model(*inputs)
    return list(seen), result + 0


def assert_calls_agree(model, other, x):
    for _ in range(2):
        torch.testing.assert_close(other(x) + 0, model(x))


def has_own_forward(model):
    """The names of the modules that do not run their class's forward."""
    return [name for name, m in model.named_modules() if "forward" in vars(m)]


def test_the_second_call_hides_the_encoder_from_the_mode(seen, x):
    stock = Network().double()
    model = accelerated(stock)
    first, values = calls(seen, model, x.double())
    second, again = calls(seen, model, x.double())
    # The encoder's three blocks; the decoder's is called after an upsampling, and writes to its map.
    assert first.count("conv2d") == second.count("conv2d") + 3 == 5
    assert second.count("interpolate") == 2
    torch.testing.assert_close((values, again), (stock(x.double()),) * 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", ["size", "training", "gradients"])
def test_another_kind_of_call_is_looked_at_anew(seen, change, model, x):
    for _ in range(2):
        model(x)
    for block in model.encoder[0]:
        block.scale = 2
    entries = len(fused_operators(model))
    small = x[:, :, :16] if change == "size" else x
    with torch.set_grad_enabled(change != "gradients"):
        names, _ = calls(seen, model.train(change != "training"), small)
    assert names.count("interpolate") == 4
    assert len(fused_operators(model)) > entries


def test_a_module_that_upsamples_where_it_did_not_runs_as_it_is_written(x):
    model = Network()
    other = accelerated(model)
    other(x)
    for m in (model, other):
        m.encoder[0][0].scale = 2
    assert_calls_agree(model, other, x)


class Memory(nn.Module):
    """It upsamples nothing, and writes to what it is not given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()
        self.register_buffer("held", torch.ones(1, 2, 4, 4))

    def forward(self, x):
        self.held.add_(1)
        return self.layer(x)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("late", [False, True])
def test_a_module_may_write_to_what_was_upsampled(late, mode, x):
    """A memory that is updated and upsampled in every call, while the results of earlier calls are not read yet."""

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = nn.Sequential(Memory())

        def forward(self, x):
            if not late:
                self.memory(x)
            up = F.interpolate(self.memory[0].held, scale_factor=2, mode="bilinear")
            if late:
                self.memory(x)
            return up

    model = pspnet_fast.accelerate(Holder())
    with mode():
        results = [model(x) for _ in range(4)]
        assert [float(r.mean()) for r in results] == ([1, 2, 3, 4] if late else [2, 3, 4, 5])


def test_a_replica_is_not_looked_at(seen, model, x):
    calls(seen, model._replicate_for_data_parallel(), x)
    assert calls(seen, model, x)[0].count("conv2d") == 5


def test_the_last_result_does_not_bring_the_mode_back(seen, model):
    x, target = data()
    for _ in range(3):
        seen.clear()
        out = model(x)  # the last one lives on while this is computed
        F.cross_entropy(out, target, ignore_index=255).backward()
    assert seen.count("conv2d") == 2


def test_many_kinds_of_call_patch_a_module_once(model, x):
    for size in (16, 24, 32):
        model(x[..., :size])
    stage = model.encoder[0]
    assert stage.forward.__func__.__wrapped__ is type(stage).forward
    assert not has_own_forward(pspnet_fast.restore(model))


class Static(nn.Module):
    """A forward that is no function of the class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    @staticmethod
    def forward(x):
        return x + 1


OTHERS = {
    "a static forward": lambda model: model.encoder.append(Static()),
    "a script": lambda model: model.encoder.append(torch.jit.script(nn.Sequential(nn.ReLU()))),
    "a cycle": lambda model: setattr(model, "parent", model),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_kinds_of_modules(change, x):
    model = Network()
    change(model)
    expected = model(x)
    assert_calls_agree(lambda _: expected, pspnet_fast.accelerate(model), x)


def test_a_part_that_is_accelerated_later_stays_so(model, x):
    model(x)
    stage = pspnet_fast.accelerate(model.encoder[0])
    model(x)
    pspnet_fast.restore(model)
    assert is_accelerated(stage)
    pspnet_fast.restore(stage)
    assert not has_own_forward(model)


@pytest.mark.parametrize("what", ["function", "class"])
def test_a_forward_that_is_replaced_later_runs(what, monkeypatch, x):
    class Stage(nn.Sequential):
        def forward(self, y):
            return super().forward(y) + 1

    class Other(Stage):
        def forward(self, y):
            return super().forward(y) * 3

    model = Network()
    model.encoder[0] = Stage(*model.encoder[0])
    other = accelerated(model)
    for _ in range(2):
        other(x)
    if what == "function":
        monkeypatch.setattr(Stage, "forward", lambda self, y: nn.Sequential.forward(self, y) - 2)
    else:
        model.encoder[0].__class__ = other.encoder[0].__class__ = Other
    assert_calls_agree(model, other, x)


def test_a_replica_of_a_module_whose_forward_the_user_replaced(model, x):
    model(x)
    model.encoder[0].forward = lambda y: y
    assert model.encoder[0]._replicate_for_data_parallel().forward(3) == 3


def test_explain_looks_at_every_module(model, x):
    with torch.no_grad():
        model(x)
    model.encoder[0][0].scale = 2
    assert "encoder.0.0" in {e.module for e in pspnet_fast.explain(model, x)}


def test_only_modules_without_a_forward_of_their_own_are_patched(x):
    model = Network()
    stage = model.encoder[1]
    own = stage.forward = lambda y, forward=stage.forward: forward(y) + 1
    stock = copy.deepcopy(model)
    assert_calls_agree(stock, pspnet_fast.accelerate(model), x)
    assert stage.forward is own
    assert "encoder.0" in has_own_forward(model)
    pspnet_fast.restore(model)
    assert stage.forward is own
    assert has_own_forward(model) == ["encoder.1"]
    assert not any("_replicate_for_data_parallel" in vars(m) for m in model.modules())
    assert vars(model).keys() == vars(Network()).keys()


def test_copies_replicas_and_pickles_of_patched_modules_run_their_own_weights(model, x):
    for _ in range(2):
        expected = model.eval()(x) + 0
    stage = model.encoder[0]
    assert stage._replicate_for_data_parallel().forward.__self__ is not stage

    text = pickle.dumps(model)
    assert b"pspnet_fast" not in text
    loaded, twin = pickle.loads(text), copy.deepcopy(model)
    with torch.no_grad():
        stage[0].conv.weight.zero_()
    torch.testing.assert_close(loaded(x), expected)
    for copied in (twin, pspnet_fast.accelerate(loaded)):
        assert_calls_agree(lambda _: expected, copied, x)
        stage = copied.encoder[0]
        assert stage.forward.__self__ is stage
        assert stage._replicate_for_data_parallel().forward.__self__ is not stage


def test_a_patched_model_compiles(model, x):
    expected = [model(x) + 0 for _ in range(2)][1]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(model(x) + 0, expected)
