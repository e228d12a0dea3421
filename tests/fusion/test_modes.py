"""Grad modes, autocast, layouts, checkpointing, and models spread over processes."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Levels, Mixed, Plain, accelerated, assert_same_results, data, fused_operators, training_step
from pairs import Recorder, assert_same, deferred, is_built, low_and_target, upsample, with_loss
from torch import nn
from torch.utils.checkpoint import checkpoint

import pspnet_fast
from pspnet_fast.fusion.deferred import Deferred
from pspnet_fast.fusion.upsampling import autocast_dtype


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    low, target = low_and_target()
    with mode():
        up, stock = deferred(low), upsample(low)
        assert up.is_inference() == stock.is_inference()
        assert torch.equal(up.argmax(1), stock.argmax(1))
        assert not is_built(up)
        torch.testing.assert_close(F.cross_entropy(up, target), F.cross_entropy(stock, target))
        torch.testing.assert_close(up * 1, stock)


@pytest.fixture(params=["CPU", "GPU"])
def autocast_rules(request):
    """Those of a GPU, on the CPU: upsampling runs in float32, and concatenation is left to its own promotion."""
    if request.param == "CPU":
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    excluded = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def outside_autocast(function):
        def run(*args):
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return function(*args)

        return run

    stock = torch.ops.aten.upsample_bilinear2d.vec
    library.impl("upsample_bilinear2d.vec", outside_autocast(lambda x, *args: stock(x.float(), *args)), "AutocastCPU")
    library.impl("cat", outside_autocast(torch.ops.aten.cat), "AutocastCPU")
    autocast_dtype.cache_clear()
    yield
    library._destroy()
    autocast_dtype.cache_clear()


def assert_close_in_bfloat16(losses, models):
    """And the gradients."""
    pairs = zip(losses, models, strict=True)
    stock, fused = (torch.autograd.grad(loss, list(model.parameters())) for loss, model in pairs)
    assert [t.dtype for t in (losses[0], *stock)] == [t.dtype for t in (losses[1], *fused)]
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=0)
    gradients = (torch.cat([g.flatten() for g in gradients]) for gradients in (stock, fused))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.usefixtures("autocast_rules")
def test_autocast(head):
    model, (x, target) = head(), data()
    ours, in_float32 = accelerated(model), accelerated(model)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x), ours(x)
        losses = [F.cross_entropy(out, target, ignore_index=255) for out in outputs]
    assert outputs[0].dtype == outputs[1].dtype
    assert_close_in_bfloat16(losses, (model, ours))
    training_step(in_float32, x, target)
    assert fused_operators(ours) == fused_operators(in_float32)


@pytest.mark.parametrize("head", [Plain, Levels])
@pytest.mark.usefixtures("autocast_rules")
def test_compiled_under_autocast(head):
    model, (x, target), backend = head(), data(), Recorder()
    compiled = torch.compile(with_loss(model), backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        losses = F.cross_entropy(model(x), target, ignore_index=255), compiled(x, target)
    assert_close_in_bfloat16(losses, (model, model))
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    assert not backend.upsamples()


@pytest.mark.parametrize("lowered", ["forward", "backward", "both"])
def test_autocast_of_a_map_that_two_convolutions_read(lowered):
    """The stock operator, which gives the map's gradient, runs as it did in the forward pass."""
    results = []
    for block in (contextlib.nullcontext, pspnet_fast.fuse):
        torch.manual_seed(0)
        low, base = (torch.randn(2, 4, n, n, requires_grad=True) for n in (4, 8))
        first, *convs = (nn.Conv2d(*options) for options in ((4, 4, 1), (8, 3, 3, 1, 1), (8, 3, 1), (8, 3, 5, 1, 2)))
        with block(), torch.autocast("cpu", torch.bfloat16, enabled=lowered != "backward"):
            both = torch.cat([first(base), F.interpolate(first(low), (8, 8), mode="bilinear")], dim=1)
            loss = sum(conv(both).float().square().sum() for conv in convs)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered != "forward"):
            loss.backward()
        results.append([t.grad for t in (low, base, *(p for conv in (first, *convs) for p in conv.parameters()))])
    for stock, fused in zip(*results, strict=True):
        assert stock.dtype == fused.dtype
        assert (fused - stock).norm() <= (1e-5 if lowered == "backward" else 2e-2) * stock.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    low, target = low_and_target(torch.float32)
    up, stock = deferred(low.to(dtype)), upsample(low.to(dtype))
    loss = F.cross_entropy(up, target)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, F.cross_entropy(stock, target), rtol=2e-2, atol=0)
    assert up.float().dtype == torch.float32
    torch.testing.assert_close(up.float() + 0, stock.float(), rtol=0, atol=0)
    expected = F.cross_entropy(stock.float(), target)
    torch.testing.assert_close(F.cross_entropy(up.float(), target), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_channels_last(head):
    x, target = data()
    x = x.contiguous(memory_format=torch.channels_last)
    model = head().to(memory_format=torch.channels_last)
    assert_same_results(model, lambda m: (m(x).stride(), training_step(m, x, target)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["around", "inside", "loss"])
def test_activation_checkpointing(reentrant, where):
    again = functools.partial(checkpoint, use_reentrant=reentrant)

    class Inside(Mixed):
        def forward(self, x):
            return again(super().forward, x) if where == "inside" else super().forward(x)

    def run(m):
        def loss_of(x):
            outputs.append(again(m, x) if where == "around" else m(x))
            return F.cross_entropy(outputs[-1], target, ignore_index=255)

        step = training_step(m, x, target, lambda x, _: again(loss_of, x) if where == "loss" else loss_of(x))
        gradient, x.grad = x.grad, None
        return step, gradient

    outputs, (x, target) = [], data()
    x.requires_grad_()
    assert_same_results(Inside().eval(), run)
    assert where != "around" or not is_built(outputs[-1])


def test_saved_tensor_hooks():
    def use(up, target, low):
        with torch.autograd.graph.save_on_cpu():
            loss = F.cross_entropy(up, target) + up.square().mean()
        loss.backward()
        return loss

    assert_same(use)


DDP_OPTIONS = [
    *({}, {"find_unused_parameters": True}, {"static_graph": True}, {"gradient_as_bucket_view": True}),
    *({"broadcast_buffers": False}, {"bucket_cap_mb": 1, "find_unused_parameters": True}),
]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", DDP_OPTIONS, ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(options, accumulate):
    if accumulate and "static_graph" in options:
        pytest.skip("PyTorch's static graph does not allow no_sync() in its first step")
    x, target = data()
    outputs = []

    def run(m):
        wrapped = nn.parallel.DistributedDataParallel(m, **options)
        for last in (False, True):
            with contextlib.nullcontext() if last or not accumulate else wrapped.no_sync():
                outputs.append(wrapped(x))
                loss = F.cross_entropy(outputs[-1], target, ignore_index=255)
                loss.backward()
        return loss, [p.grad for p in m.parameters()]

    assert_same_results(Mixed(), run)
    assert type(outputs[-1]) is Deferred
    assert not is_built(outputs[-1])


@pytest.mark.usefixtures("process_group")
def test_fully_sharded_data_parallel():
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = pytest.importorskip("torch.distributed.device_mesh")
    model, (x, target) = Mixed(), data()
    ours = accelerated(model)
    fsdp.fully_shard(ours, mesh=mesh.init_device_mesh("cpu", (1,)))
    loss, gradients = training_step(ours, x, target)
    gradients = {name: gradient.full_tensor() for name, gradient in gradients.items()}
    torch.testing.assert_close((loss, gradients), training_step(model, x, target))
