from __future__ import annotations

import pytest
import torch
from running import LAYOUTS, Backend, random
from torch import Tensor

from pspnet_fast import AxisTaps, reference, upsample_softmax_add

OPERATOR = "upsample_softmax_add"


@pytest.mark.parametrize("layout", [*LAYOUTS, "window"])
def test_totals_of_any_strides(backend: Backend, layout: str) -> None:
    """A window of a larger map is written, and nothing round it."""
    logits, whole = random(2, 3, 3, 4, device=backend.device), random(2, 5, 25, 99, device=backend.device)
    around, window = whole.clone(), (slice(None), slice(1, 4), slice(3, 20), slice(5, 95))
    total = whole[window] if layout == "window" else random(2, 3, 17, 90, device=backend.device, layout=layout)
    before = total.clone(memory_format=torch.contiguous_format)
    assert upsample_softmax_add(total, logits, (17, 90)) is total
    assert not torch.equal(total, before)
    torch.testing.assert_close(total, upsample_softmax_add(before, logits, (17, 90)))
    around[window] = whole[window]
    torch.testing.assert_close(whole, around, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_total_itself_is_returned(device: str) -> None:
    for batch in (0, 2):
        total, logits = torch.zeros(batch, 4, 8, 9, device=device), torch.zeros(batch, 4, 3, 3, device=device)
        assert upsample_softmax_add(total, logits, (8, 9)) is total


def test_probabilities_add_up_to_the_weight(backend: Backend) -> None:
    total = torch.zeros(1, 5, 9, 11, device=backend.device)
    upsample_softmax_add(total, 100 * random(1, 5, 3, 4, device=backend.device), (9, 11), weight=0.5)
    torch.testing.assert_close(total.sum(1), torch.full_like(total[:, 0], 0.5))


def test_logits_far_apart(backend: Backend) -> None:
    """Between two nodes with other winners the largest logit lies far below both maxima."""
    logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0], [-1e4, -1e4]], device=backend.device).view(1, 3, 1, 2)
    total = torch.zeros(1, 3, 1, 5, device=backend.device)
    upsample_softmax_add(total, logits, (1, 5))
    expected = torch.tensor([[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1], [0, 0, 0, 0, 0]], device=backend.device)
    torch.testing.assert_close(total[0, :, 0], expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_at_its_pixels(backend: Backend, value: float) -> None:
    """As on the CPU. Stock CUDA interpolation copies a map of equal size: it multiplies no infinite logit by 0."""
    on_cpu = random(1, 3, 2, 4)
    on_cpu[0, 1, 0, 3] = value
    logits = on_cpu.to(backend.device)
    total = torch.zeros(1, 3, 2, 4, device=backend.device)
    upsample_softmax_add(total, logits, (2, 4))
    expected = reference.upsample_softmax_add(torch.zeros(1, 3, 2, 4).double(), on_cpu.double(), (2, 4))
    assert expected[0, 1].isfinite().sum() == 7
    torch.testing.assert_close(total.cpu(), expected.float(), equal_nan=True)

    # Where the weight is 0 it is not read.
    columns = AxisTaps(
        torch.tensor([[0, 3], [1, 2], [3, 3], [3, 2]]).int(), torch.tensor([[1, 0], [0, 1], [0, 0], [0, 1.0]])
    )
    taken = torch.zeros(1, 3, 2, 4, device=backend.device)
    upsample_softmax_add(taken, logits, (2, 4), columns=AxisTaps(*(t.to(backend.device) for t in columns)))
    exact = logits.double().softmax(1)
    wanted = torch.stack([exact[..., 0], exact[..., 2], torch.zeros_like(exact[..., 0]), exact[..., 2]], 3)
    torch.testing.assert_close(taken, wanted.float())


def test_compile(backend: Backend) -> None:
    """Into a window of a map made inside the graph, and into a map that is given."""

    def function(given: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.zeros(*logits.shape[:2], 12, 12, dtype=logits.dtype, device=logits.device)
        upsample_softmax_add(made[..., 2:10, 1:10], logits * 2, (8, 9))
        return made + 1, upsample_softmax_add(given, logits, (8, 9), flip=True)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for size in ((2, 4, 3, 3), (1, 4, 5, 2)):
        logits, given = random(*size, device=backend.device), random(size[0], 4, 8, 9, device=backend.device)
        other = given.clone()
        torch.testing.assert_close(compiled(given, logits), function(other, logits))
        torch.testing.assert_close(given, other)


@pytest.mark.parametrize("which", ["total", "logits"])
def test_there_is_no_gradient(backend: Backend, which: str) -> None:
    tensors = {"total": torch.zeros(1, 2, 4, 4), "logits": torch.zeros(1, 2, 2, 2)}
    tensors = {name: tensor.to(backend.device).requires_grad_(name == which) for name, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match=r"upsample_softmax_add has no gradient, .* under torch.no_grad"):
        upsample_softmax_add(**tensors, size=(4, 4))
    with torch.no_grad():
        upsample_softmax_add(**tensors, size=(4, 4))
    assert float(tensors["total"].detach().sum()) == pytest.approx(16)


TAPS = AxisTaps(torch.zeros(8, 2, dtype=torch.int32), torch.ones(8, 2))


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_outside_of_the_map(backend: Backend, index: int) -> None:
    columns = AxisTaps(*(t.repeat(2, 1).to(backend.device)[:9] for t in TAPS))
    columns.position[4] = index
    total, logits = torch.zeros(2, 4, 8, 9, device=backend.device), random(2, 4, 3, 3, device=backend.device)
    if backend.name not in ("cpu", "reference"):
        upsample_softmax_add(total, logits, (8, 9), columns=columns)
        columns.position.clamp_(0, 8)
        torch.testing.assert_close(
            total, upsample_softmax_add(torch.zeros_like(total), logits, (8, 9), columns=columns)
        )
        return
    with pytest.raises((ValueError, IndexError), match=r"columns.position must be in \[0, 9\)|out of range"):
        upsample_softmax_add(total, logits, (8, 9), columns=columns)
