"""In-place writes, views and metadata of a deferred tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairs import assert_same, deferred, is_built, low_and_target, upsample
from torch import nn

import pspnet_fast

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
    "source operator": lambda x, low: torch.ops.aten.mul_.Tensor(low, 2.0),
    "source packet": lambda x, low: torch.ops.aten.mul_(low, 2.0),
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
