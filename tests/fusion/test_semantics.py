"""A deferred tensor behaves as the stock one: hooks, writes, views, autograd, checkpointing, autocast, transforms."""

from __future__ import annotations

import copy
import io
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Mixed, Plain, Pyramid, data
from torch import nn
from torch.utils.checkpoint import checkpoint

import pspnet_fast
from pspnet_fast.fusion.deferred import Deferred


def low_and_target(dtype=torch.float64):
    low = torch.randn(2, 5, 4, 6, dtype=dtype, requires_grad=True)
    return low, torch.randint(0, 5, (2, 8, 12))


def upsample(low):
    return F.interpolate(low, (8, 12), mode="bilinear", align_corners=False)


def deferred(low):
    with pspnet_fast.fuse():
        up = upsample(low)
    assert type(up) is Deferred
    return up


def is_built(x):
    return x.cell.value is not None


def both(use, dtype=torch.float64):
    """``use(map, target, low)`` of the stock map and of the deferred one, each with the gradient of low."""
    results = []
    low, target = low_and_target(dtype)
    for make in (upsample, deferred):
        leaf = low.detach().clone().requires_grad_()
        x = leaf * 1  # not a leaf: it may be written to
        result = use(make(x), target, x)
        results.append((result, leaf.grad))
    return results


def assert_same(use, dtype=torch.float64):
    stock, fused = both(use, dtype)
    torch.testing.assert_close(fused, stock)


# Autograd


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


@pytest.mark.parametrize("kind", ["read", "double", "retain_grad"])
def test_hooks(kind):
    def use(up, target, low):
        seen = []
        if kind == "read":
            up.register_hook(lambda grad: seen.append(grad.sum()))
        elif kind == "double":
            up.register_hook(lambda grad: grad * 2)
        else:
            up.retain_grad()
        F.cross_entropy(up, target).backward()
        return seen, up.grad if kind == "retain_grad" else None

    assert_same(use)


def test_module_hooks():
    x, target = data()
    results = []
    for accelerated in (False, True):
        torch.manual_seed(1)
        model, seen = Mixed(), []
        if accelerated:
            pspnet_fast.accelerate(model)
        model.fuse.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.detach().mean()))
        model.fuse.register_full_backward_hook(lambda m, i, o, seen=seen: seen.extend([i[0].sum(), o[0].sum()]))
        model.register_full_backward_hook(lambda m, i, o, seen=seen: seen.append(o[0].sum()))
        F.cross_entropy(model(x), target, ignore_index=255).backward()
        results.append((seen, [p.grad for p in model.parameters()]))
    assert len(results[0][0]) == 4
    torch.testing.assert_close(results[1], results[0])


def test_hooks_keep_the_loss_fused():
    low, target = low_and_target()
    up = deferred(low)
    up.register_hook(lambda grad: None)
    F.cross_entropy(up, target).backward()
    assert not is_built(up)


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


# Writes and views


WRITES = {
    "setitem": lambda x, low: x.__setitem__((slice(None), 0), 0.5),
    "clamp_": lambda x, low: x.clamp_(min=0),
    "relu": lambda x, low: F.relu(x, inplace=True),
    "module": lambda x, low: nn.Hardswish(inplace=True)(x),
    "view": lambda x, low: x[:, 1:3].mul_(2),
    "transposed": lambda x, low: x.permute(0, 2, 3, 1)[..., 1].zero_(),
    "data": lambda x, low: x.data[:, 2].fill_(1),
    "detached": lambda x, low: x.detach().add_(1),
    "numpy": lambda x, low: np.multiply(x.detach().numpy(), 2, out=x.detach().numpy()),
    "out": lambda x, low: torch.mul(x.detach(), 3, out=x.detach()),
    "foreach": lambda x, low: torch._foreach_mul_([x.detach()], 2.0),
    "source": lambda x, low: low.mul_(2),
    "source view": lambda x, low: low[:, 0].zero_(),
    "source relu": lambda x, low: F.relu(low, inplace=True),
    "source out": lambda x, low: torch.add(low.detach(), 1, out=low.detach()),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("before", ["nothing", "loss", "softmax", "labels", "slice", "clone"])
def test_in_place_writes(what, before):
    def use(up, target, low):
        with pspnet_fast.fuse():
            derived = {
                "nothing": lambda: None,
                "loss": lambda: F.cross_entropy(up, target),
                "softmax": lambda: up.softmax(1),
                "labels": lambda: up.max(1)[0],
                "slice": lambda: up[:, 1:4],
                "clone": lambda: up.clone(),
            }[before]()
            WRITES[what](up, low)
            loss = F.cross_entropy(up, target)
            if derived is not None:
                loss = loss + derived.square().mean()
        loss.backward()
        return loss

    def outcome(make):
        torch.manual_seed(2)
        low, target = low_and_target()
        x = low * 1
        with pspnet_fast.fuse() if make is deferred else torch.enable_grad():
            up = upsample(x)
        return use(up, target, x), low.grad

    # The stock graph in a block of its own: nothing is deferred there, as nothing is upsampled.
    try:
        stock = outcome(upsample)
    except RuntimeError as error:
        if "inplace operation" in str(error):
            return  # stock saves what the fused operators do not need
        raise
    torch.testing.assert_close(outcome(deferred), stock)


def test_a_write_to_the_source_outside_the_block_is_an_error():
    low, _ = low_and_target()
    source = low * 1
    up = deferred(source)
    with torch.no_grad():
        source.zero_()
    with pytest.raises(RuntimeError, match="modified in place outside"):
        up.sum()


def test_views_and_shapes():
    def use(up, target, low):
        parts = [up[0], up[:, 1:3], up[..., 0], up.view(2, -1), up.unbind(1)[2], up.transpose(1, 2), up.flatten(2)]
        parts += [*up.chunk(2, 1), *up.split([1, 4], 1), up.narrow(1, 1, 2), up.expand(2, 5, 8, 12), up.T]
        sum(p.square().mean() for p in parts).backward()
        return [p.shape for p in parts], [p.stride() for p in parts], up.is_contiguous(), len(up), up.numel()

    assert_same(use)


def test_metadata_allocates_nothing():
    low, _ = low_and_target()
    up = deferred(low)
    _ = (
        up.shape,
        up.dtype,
        up.device,
        up.requires_grad,
        up.stride(),
        up.grad_fn,
        up.is_leaf,
        up.ndim,
        hash(up),
        up.size(1),
    )
    _ = up.detach(), up.clone(), torch.zeros_like(up), up.new_zeros(3), torch.is_tensor(up), up.is_floating_point()
    assert not is_built(up)


# Reading


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.detach().numpy(),
        lambda x: x.detach().tolist(),
        lambda x: np.asarray(x.detach()),
        lambda x: x[0, 0, 0, 0].item(),
        lambda x: [row.sum() for row in x],
        lambda x: bool((x > 0).any()),
        lambda x: torch.from_dlpack(x.detach()),
        lambda x: x.detach().cpu().double(),
        lambda x: copy.deepcopy(x.detach()),
        lambda x: x.detach().untyped_storage().nbytes(),
        lambda x: torch.stack([x, x]).numel(),
        lambda x: torch.einsum("bchw->bhw", x),
        lambda x: str(x.detach()),
        lambda x: f"{x.mean():.6f}",
        lambda x: (x.detach() == x.detach()).all(),
    ],
)
def test_reading_gives_stock_values(read):
    low, _ = low_and_target()
    expected, found = read(upsample(low)), read(deferred(low))
    if isinstance(expected, (str, list, np.ndarray)) and not isinstance(expected, list):
        assert str(found) == str(expected)
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda x, t: x.numpy(),
        lambda x, t: copy.deepcopy(x),
        lambda x, t: F.cross_entropy(x, t.int()),
        lambda x, t: F.cross_entropy(x, t[:, :3]),
        lambda x, t: F.cross_entropy(x, t + 5),
        lambda x, t: F.cross_entropy(x, t, weight=torch.ones(3, dtype=x.dtype)),
        lambda x, t: F.cross_entropy(x, t, weight=torch.ones(5, dtype=x.dtype, requires_grad=True)),
        lambda x, t: F.cross_entropy(x, t, label_smoothing=2.0),
        lambda x, t: F.cross_entropy(x, t, reduction="median"),
        lambda x, t: F.conv2d(x, torch.ones(1, 3, 1, 1, dtype=x.dtype)),
        lambda x, t: F.conv2d(x, torch.ones(1, 5, 1, 1)),
        lambda x, t: torch.cat([x, x[..., 1:]], 1),
        lambda x, t: x.argmax(7),
        lambda x, t: x.topk(9, dim=1),
        lambda x, t: x.view(3, 3),
        lambda x, t: x + torch.ones(7),
        lambda x, t: x.foo,
    ],
)
def test_stock_exceptions(misuse):
    low, target = low_and_target()
    with pytest.raises(Exception) as expected:  # noqa: PT011
        misuse(upsample(low), target)
    with pytest.raises(type(expected.value)) as found:
        misuse(deferred(low), target)
    first = str(expected.value).splitlines()[0].replace("'Tensor'", "'Deferred'")
    assert str(found.value).splitlines()[0] == first


def test_saving_an_output():
    low, _ = low_and_target()
    buffer = io.BytesIO()
    torch.save({"logits": deferred(low)}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["logits"]
    assert type(loaded) is torch.Tensor
    torch.testing.assert_close(loaded, upsample(low), rtol=0, atol=0)


# Modes


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


@pytest.mark.parametrize("head", HEADS)
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
    assert results[0][:2] == results[1][:2]
    assert results[0][3] == results[1][3]
    torch.testing.assert_close(results[1][2], results[0][2], rtol=2e-2, atol=0)
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, other)]
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


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


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}])
def test_distributed_data_parallel(options, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        x, target = data()
        model = Mixed()
        other = copy.deepcopy(model)
        results = []
        for m in (model, pspnet_fast.accelerate(other)):
            wrapped = nn.parallel.DistributedDataParallel(m, **options)
            for _ in range(2):  # accumulates
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


# Transforms


def test_functional_transforms():
    x, target = data()
    model = Plain().eval()
    other = pspnet_fast.accelerate(copy.deepcopy(model))

    def loss(parameters, m):
        out = torch.func.functional_call(m, parameters, (x,))
        return F.cross_entropy(out, target, ignore_index=255)

    expected = torch.func.grad(loss)(dict(model.named_parameters()), model)
    torch.testing.assert_close(torch.func.grad(loss)(dict(other.named_parameters()), other), expected)
    torch.testing.assert_close(torch.vmap(lambda v: other(v[None]))(x), torch.vmap(lambda v: model(v[None]))(x))
    _, expected = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(torch.func.jvp(other, (x,), (torch.ones_like(x),))[1], expected)


def test_a_deferred_tensor_inside_a_transform():
    low, target = low_and_target()
    up, stock = deferred(low.detach()), upsample(low.detach())
    loss = lambda x: F.cross_entropy(x, target)  # noqa: E731
    torch.testing.assert_close(torch.func.grad(loss)(up), torch.func.grad(loss)(stock))
    torch.testing.assert_close(torch.vmap(lambda x: x.softmax(0))(up), stock.softmax(1))


def test_forward_mode():
    x, _ = data()
    model = pspnet_fast.accelerate(Plain())
    with torch.autograd.forward_ad.dual_level():
        out = model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert tangent is not None
    with torch.autograd.forward_ad.dual_level():
        out = pspnet_fast.restore(model)(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(tangent, torch.autograd.forward_ad.unpack_dual(out).tangent)


def test_tracing_and_export():
    x, _ = data()
    model = Pyramid().eval()
    expected = model(x)
    pspnet_fast.accelerate(model)
    torch.testing.assert_close(torch.jit.trace(model, x, check_trace=False)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_quantised_modules():
    model = Mixed().eval()
    other = copy.deepcopy(model)
    quantised = torch.ao.quantization.quantize_dynamic(other, {nn.Conv2d, nn.Linear})
    x, _ = data()
    torch.testing.assert_close(pspnet_fast.accelerate(quantised)(x) + 0, model(x))


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


def test_no_environment_is_left_behind():
    assert "PSPNET_FAST_FUSION" not in os.environ
    assert type(upsample(low_and_target()[0])) is torch.Tensor
