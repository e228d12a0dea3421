"""Grad modes, autocast, layouts, checkpointing, and models spread over processes."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Levels, Mixed, Plain, data, fused_operators
from pairs import Recorder, assert_same, deferred, is_built, low_and_target, upsample
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

    def upsample_in_float32(x, *args):
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return torch.ops.aten.upsample_bilinear2d.vec(x.float(), *args)

    def cat(*args):
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return torch.ops.aten.cat(*args)

    library.impl("upsample_bilinear2d.vec", upsample_in_float32, "AutocastCPU")
    library.impl("cat", cat, "AutocastCPU")
    autocast_dtype.cache_clear()
    yield
    library._destroy()
    autocast_dtype.cache_clear()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.usefixtures("autocast_rules")
def test_autocast(head):
    model = head()
    other = pspnet_fast.accelerate(copy.deepcopy(model))
    x, target = data()
    results = []
    for m in (model, other):
        with torch.autocast("cpu", torch.bfloat16):
            out = m(x)
            loss = F.cross_entropy(out, target, ignore_index=255)
        loss.backward()
        results.append((out.dtype, loss.dtype, loss.detach(), [p.grad.dtype for p in m.parameters()]))
    third = pspnet_fast.accelerate(copy.deepcopy(model))
    F.cross_entropy(third(x), target, ignore_index=255)
    assert fused_operators(other) == fused_operators(third)
    assert results[0][:2] == results[1][:2]
    assert results[0][3] == results[1][3]
    torch.testing.assert_close(results[1][2], results[0][2], rtol=2e-2, atol=0)
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, other)]
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("head", [Plain, Levels])
@pytest.mark.usefixtures("autocast_rules")
def test_compiled_under_autocast(head):
    model, backend = head(), Recorder()
    (x, target), results = data(), []

    def step(model):
        with pspnet_fast.fuse():
            return F.cross_entropy(model(x), target, ignore_index=255)

    for run in (lambda m: F.cross_entropy(m(x), target, ignore_index=255), torch.compile(step, backend=backend)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(model)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((loss.detach(), torch.cat([g.flatten() for g in gradients])))
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    assert not backend.upsamples()
    torch.testing.assert_close(results[1][0], results[0][0], rtol=2e-2, atol=0)
    assert F.cosine_similarity(results[0][1], results[1][1], dim=0) > 0.99


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
    torch.testing.assert_close(
        F.cross_entropy(up.float(), target),
        F.cross_entropy(low, target=target[:, ::2, ::2]) * 0 + F.cross_entropy(stock.float(), target),
        rtol=1e-2,
        atol=0,
    )


@pytest.mark.parametrize("head", HEADS)
def test_channels_last(head):
    model = head().to(memory_format=torch.channels_last)
    other = pspnet_fast.accelerate(copy.deepcopy(model))
    x, target = data()
    x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for m in (model, other):
        out = m(x)
        loss = F.cross_entropy(out, target, ignore_index=255)
        loss.backward()
        results.append((out.stride(), loss, [p.grad for p in m.parameters()]))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["around", "inside", "loss"])
def test_activation_checkpointing(reentrant, where):
    class Inside(Mixed):
        def forward(self, x):
            if where == "inside":
                return checkpoint(super().forward, x, use_reentrant=reentrant)
            return super().forward(x)

    x, target = data()
    x.requires_grad_()
    model = Inside().eval()
    results = []
    for m in (model, pspnet_fast.accelerate(copy.deepcopy(model))):
        if where == "around":
            loss = F.cross_entropy(checkpoint(m, x, use_reentrant=reentrant), target, ignore_index=255)
        elif where == "loss":

            def whole(x, m=m):
                return F.cross_entropy(m(x), target, ignore_index=255)

            loss = checkpoint(whole, x, use_reentrant=reentrant)
        else:
            loss = F.cross_entropy(m(x), target, ignore_index=255)
        loss.backward()
        results.append((loss, [p.grad for p in m.parameters()], x.grad))
        x.grad = None
    torch.testing.assert_close(results[1], results[0])


def test_a_loss_around_a_checkpointed_model_is_fused():
    x, target = data()
    x.requires_grad_()
    for reentrant in (False, True):
        model = pspnet_fast.accelerate(Plain())
        out = checkpoint(model, x, use_reentrant=reentrant)
        F.cross_entropy(out, target, ignore_index=255).backward()
        assert not is_built(out)


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


@pytest.mark.parametrize("options", DDP_OPTIONS, ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_distributed_data_parallel(options, accumulate, tmp_path):
    if accumulate and "static_graph" in options:
        pytest.skip("PyTorch's static graph does not allow no_sync() in its first step")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        x, target = data()
        model = Mixed()
        other = copy.deepcopy(model)
        results = []
        for m in (model, pspnet_fast.accelerate(other)):
            wrapped = nn.parallel.DistributedDataParallel(m, **options)
            for last in (False, True):
                with contextlib.nullcontext() if last or not accumulate else wrapped.no_sync():
                    out = wrapped(x)
                    loss = F.cross_entropy(out, target, ignore_index=255)
                    loss.backward()
            results.append((loss, [p.grad for p in m.parameters()]))
        torch.testing.assert_close(results[1], results[0])
        assert type(out) is Deferred
        assert not is_built(out)
    finally:
        torch.distributed.destroy_process_group()


def test_fully_sharded_data_parallel(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = pytest.importorskip("torch.distributed.device_mesh")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        x, target = data()
        model = Mixed()
        expected = F.cross_entropy(model(x), target, ignore_index=255)
        expected.backward()
        other = pspnet_fast.accelerate(copy.deepcopy(model))
        other.zero_grad()
        fsdp.fully_shard(other, mesh=mesh.init_device_mesh("cpu", (1,)))
        loss = F.cross_entropy(other(x), target, ignore_index=255)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        for p, q in zip(other.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p.grad.full_tensor(), q.grad)
    finally:
        torch.distributed.destroy_process_group()
