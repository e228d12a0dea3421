"""Code that reads a deferred tensor gets the stock value, and the stock exception."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairs import deferred, low_and_target, upsample


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
