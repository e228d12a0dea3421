"""The checks themselves: each planted fault must turn them red."""

from __future__ import annotations

from collections.abc import Callable

import fuzz
import pytest
import torch
from exactness import assert_as_exact_as_stock
from running import (
    check_compiles,
    check_exactness,
    check_meta,
    check_same_bits,
    check_writes_everything,
    random,
)
from torch import Tensor

from pspnet_fast import reference

BINS = (1, 2, 3, 6)


def pool_from_edges(x: Tensor, edges: Callable[[int, int, int], tuple[int, int]]) -> Tensor:
    """Pooling written out, with bin edges to choose."""
    cells = []
    for k in BINS:
        for i in range(k):
            for j in range(k):
                (top, bottom), (left, right) = edges(i, x.shape[2], k), edges(j, x.shape[3], k)
                cells.append(x[:, :, top:bottom, left:right].mean((2, 3)))
    return torch.stack(cells, dim=2)


def right_edges(i: int, n: int, k: int) -> tuple[int, int]:
    return i * n // k, -((-(i + 1) * n) // k)


def floored_edges(i: int, n: int, k: int) -> tuple[int, int]:
    return i * n // k, (i + 1) * n // k


def sum_in_bfloat16(x: Tensor) -> Tensor:
    return reference.pyramid_pool(x.bfloat16(), BINS).to(x.dtype)


def one_element_wrong(x: Tensor) -> Tensor:
    pooled = reference.pyramid_pool(x, BINS)
    return pooled + 1e-3 * torch.nn.functional.one_hot(torch.tensor(7), pooled.shape[2])


def one_element_nan(x: Tensor) -> Tensor:
    return reference.pyramid_pool(x, BINS).index_fill(2, torch.tensor([3]), torch.nan)


def levels_swapped(x: Tensor) -> Tensor:
    return reference.pyramid_pool(x, BINS[::-1])


def gradient_of_half_the_map(x: Tensor) -> Tensor:
    x = torch.cat([x[:, :, :6], x[:, :, 6:].detach()], dim=2)
    return reference.pyramid_pool(x, BINS)


def level_missing(x: Tensor) -> Tensor:
    return reference.pyramid_pool(x, BINS[:-1])


def test_a_right_implementation_passes() -> None:
    x = random(2, 3, 13, 9)
    check_exactness(lambda x: pool_from_edges(x, right_edges), lambda x: reference.pyramid_pool(x, BINS), [x])


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        (lambda x: pool_from_edges(x, floored_edges), "result 0: relative error"),
        (sum_in_bfloat16, "result 0: relative error"),
        (one_element_wrong, r"result 0: relative error .* worst at \(\d, \d, 7\)"),
        (one_element_nan, r"result 0: relative error nan"),
        (levels_swapped, "result 0: relative error"),
        (gradient_of_half_the_map, "gradient 0: relative error"),
    ],
)
def test_a_wrong_implementation_fails(faulty: Callable[[Tensor], Tensor], words: str) -> None:
    x = random(2, 3, 13, 9)
    with pytest.raises(AssertionError, match=words):
        check_exactness(faulty, lambda x: reference.pyramid_pool(x, BINS), [x])


def test_a_wrong_shape_fails() -> None:
    x = random(2, 3, 13, 9)
    with pytest.raises((AssertionError, RuntimeError), match="shape"):
        check_exactness(level_missing, lambda x: reference.pyramid_pool(x, BINS), [x])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rule_allows_twice_the_stock_error_and_no_more(dtype: torch.dtype) -> None:
    exact = torch.ones(10, dtype=torch.float64)
    stock = exact + 0.01
    assert_as_exact_as_stock(exact + 0.0199, stock, exact, dtype)
    with pytest.raises(AssertionError, match=r"allowed 0\.0"):
        assert_as_exact_as_stock(exact + 0.031, stock, exact, dtype)


def test_unwritten_memory_is_seen() -> None:
    def forgets_the_last(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[..., :-1] = x[..., :-1]
        return y

    with pytest.raises(AssertionError):
        check_writes_everything(forgets_the_last, [random(2, 5)])


def test_changing_bits_are_seen() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + 1e-7 * torch.rand_like(x)

    with pytest.raises(AssertionError, match="differs with 1 threads"):
        check_same_bits(noisy, [random(2, 5)])


def test_a_wrong_meta_shape_is_seen() -> None:
    def forgets(x: Tensor) -> Tensor:
        return x[:-1] if x.is_meta else x * 1

    with pytest.raises(AssertionError):
        check_meta(forgets, [random(2, 5)])


def test_a_graph_break_is_seen() -> None:
    def synchronises(x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x * 3

    with pytest.raises(Exception, match=r"Data-dependent|item\(\)"):
        check_compiles(synchronises, [random(2, 5)], backend="aot_eager")


@pytest.mark.parametrize(
    "name", ["pyramid_pool", "pyramid_concat", "pyramid_conv", "upsample_cross_entropy", "upsample_softmax_add"]
)
def test_a_wrong_result_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(fuzz.ops, name)
    monkeypatch.setattr(fuzz.ops, name, lambda *inputs, **options: right(*inputs, **options) * (1 + 1e-4))
    assert fuzz.main(["--count", "60"]) == 1
    assert name in capsys.readouterr().out
