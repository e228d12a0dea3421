from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from exactness import assert_as_exact_as_stock
from hypothesis import given
from running import DTYPES, LAYOUTS, Backend, check_exports, random
from torch import Tensor

from pspnet_fast import AxisTaps, reference, upsample_softmax_add

OPERATOR = "upsample_softmax_add"


def draw_taps(n: int, positions: int, device: torch.device) -> AxisTaps:
    """``n`` reads of two of ``positions``, in any order; some of weight 0."""
    weight = torch.rand(n, 2, dtype=torch.float64) * (torch.rand(n, 2) < 0.7)
    return AxisTaps(torch.randint(0, positions, (n, 2), dtype=torch.int32).to(device), weight.to(device))


def check(logits: Tensor, size: Sequence[int], total: Tensor | None = None, **options: Any) -> Tensor:
    """Holds what is added to ``total`` (random unless given) to the rule for exactness; returns it."""
    rows, columns = options.get("rows"), options.get("columns")
    shape = [size[0] if rows is None else len(rows.position), size[1] if columns is None else len(columns.position)]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if total is None:
        total = random(*logits.shape[:2], *shape, dtype=dtype, device=logits.device)
    before = total.clone()
    assert upsample_softmax_add(total, logits, size, **options) is total
    stock = reference.upsample_softmax_add(before.clone(), logits, size, **options)
    exact = reference.upsample_softmax_add(before.double(), logits.double(), size, **options)
    assert_as_exact_as_stock(total, stock, exact, dtype, "total")
    assert_as_exact_as_stock(total - before, stock - before, exact - before, dtype, "what is added")
    return total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("flip", [False, True], ids=["", "flip"])
def test_upsample_softmax_add(
    backend: Backend, flip: bool, align_corners: bool, layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype, {"flip": flip} if flip else None)
    logits = 3 * random(2, 7, 4, 5, dtype=dtype, device=backend.device, layout=layout)
    check(logits, (13, 33), align_corners=align_corners, flip=flip, weight=0.25)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["rows", "columns", "both", "both, flip"])
def test_taps(backend: Backend, which: str, dtype: torch.dtype) -> None:
    backend.require(dtype, {"which": which})
    logits = 3 * random(2, 7, 4, 5, dtype=dtype, device=backend.device)
    taps = {"rows": draw_taps(9, 13, backend.device), "columns": draw_taps(40, 33, backend.device)}
    check(logits, (13, 33), flip="flip" in which, **{k: v for k, v in taps.items() if "both" in which or k == which})


@given(
    low=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    high=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    total=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    classes=st.integers(1, 6),
    align_corners=st.booleans(),
    flip=st.booleans(),
    scale=st.sampled_from([1.0, 200.0]),
)
def test_any_shape(
    backend: Backend,
    low: tuple[int, int],
    high: tuple[int, int],
    total: tuple[int, int],
    classes: int,
    align_corners: bool,
    flip: bool,
    scale: float,
) -> None:
    logits = scale * random(2, classes, *low, device=backend.device, dtype=torch.float64)
    rows, columns = (draw_taps(n, k, backend.device) for n, k in zip(total, high, strict=True))
    check(logits, high, align_corners=align_corners, flip=flip)
    check(logits, high, align_corners=align_corners, flip=flip, rows=rows, columns=columns)


@pytest.mark.parametrize("layout", [*LAYOUTS, "window"])
def test_totals_of_any_strides(backend: Backend, layout: str) -> None:
    """A window of a larger map is written, and nothing round it."""
    logits = random(2, 3, 3, 4, device=backend.device)
    if layout != "window":
        total = random(2, 3, 17, 90, device=backend.device, layout=layout)
        assert total.stride() == check(logits, (17, 90), total).stride()
        return
    whole = random(2, 5, 25, 99, device=backend.device)
    window = (slice(None), slice(1, 4), slice(3, 20), slice(5, 95))
    expected = whole.clone()
    check(logits, (17, 90), whole[window])
    expected[window] = whole[window]
    torch.testing.assert_close(whole, expected, rtol=0, atol=0)
    assert not torch.equal(whole, random(*whole.shape, device=backend.device))


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


def test_empty_batch(backend: Backend) -> None:
    total = torch.zeros(0, 4, 5, 7, device=backend.device)
    assert upsample_softmax_add(total, torch.zeros(0, 4, 2, 3, device=backend.device), (5, 7)) is total


def test_same_bits_for_every_number_of_threads(backend: Backend) -> None:
    logits = random(2, 4, 5, 5, device=backend.device)
    totals = []
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        rows = AxisTaps(torch.arange(40, dtype=torch.int32).view(20, 2) % 33, torch.full((20, 2), 0.5))
        rows = AxisTaps(*(t.to(backend.device) for t in rows))
        totals.append(torch.zeros(2, 4, 20, 33, device=backend.device))
        upsample_softmax_add(totals[-1], logits, (33, 33), rows=rows)
    for total in totals[1:]:
        torch.testing.assert_close(total, totals[0], rtol=0, atol=0)


def test_meta() -> None:
    total = torch.zeros(2, 4, 8, 9, device="meta")
    assert upsample_softmax_add(total, torch.zeros(2, 4, 3, 3, device="meta"), (8, 9)) is total


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


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(
        lambda z: upsample_softmax_add(torch.zeros(2, 4, 8, 9, device=z.device), z, (8, 9)),
        [random(2, 4, 3, 3, device=backend.device)],
        backend.operator(OPERATOR),
    )


def test_autocast_does_not_lose_precision(backend: Backend) -> None:
    logits = random(2, 7, 4, 5, device=backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        total = upsample_softmax_add(torch.zeros(2, 7, 13, 33, device=backend.device), logits, (13, 33))
    expected = upsample_softmax_add(torch.zeros_like(total), logits, (13, 33))
    torch.testing.assert_close(total, expected, rtol=0, atol=0)


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


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"total": torch.zeros(4, 8, 9)}, ValueError, r"total must be \[B, C, H, W\], not of shape \(4, 8, 9\)"),
        ({"total": torch.zeros(2, 3, 8, 9)}, ValueError, r"total must be \[2, 4, H, W\] for logits .* not \(2, 3"),
        ({"total": torch.zeros(2, 4, 7, 9)}, ValueError, r"total must be \[B, C, 8, 9\] where rows .* not \(2, 4, 7"),
        ({"total": torch.zeros(2, 4, 8, 9).half()}, TypeError, r"total must be torch.float32 .* not torch.float16"),
        ({"size": (8, 0)}, ValueError, r"size must be \(height, width\) .* not \(8, 0\)"),
        ({"logits": [1.0]}, TypeError, "logits must be a tensor, not list"),
        ({"rows": TAPS._replace(position=TAPS.position[:7])}, ValueError, r"rows.position must be \[8, 2\] "),
        ({"rows": TAPS._replace(weight=3)}, TypeError, "rows.weight must be a tensor, not int"),
        ({"rows": TAPS._replace(weight=TAPS.position)}, TypeError, "rows must be AxisTaps of integers"),
    ],
)  # fmt: skip
def test_bad_arguments(backend: Backend, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"total": torch.zeros(2, 4, 8, 9), "logits": torch.zeros(2, 4, 3, 3), "size": (8, 9)}
    given.update(changes)
    on_device = {k: v.to(backend.device) if isinstance(v, Tensor) else v for k, v in given.items()}
    if "rows" in changes:
        moved = (t.to(backend.device) if isinstance(t, Tensor) else t for t in changes["rows"])
        on_device["rows"] = AxisTaps(*moved)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        upsample_softmax_add(**on_device)


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
