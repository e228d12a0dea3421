from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from running import DTYPES, LAYOUTS, Backend, check_exports, poisoned, random
from torch import Tensor

from pspnet_fast import upsample_argmax

OPERATOR = "upsample_argmax"
# Two classes whose interpolated logits differ by less than this may come in either order.
TIE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def assert_labels_win(labels: Tensor, logits: Tensor, size: tuple[int, int], align_corners: bool) -> None:
    """Every label is that of the largest float64 logit, to rounding."""
    up = F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)
    assert labels.shape == (logits.shape[0], *size)
    chosen = up.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen, up.amax(dim=1), rtol=TIE[logits.dtype], atol=TIE[logits.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_upsample_argmax(backend: Backend, align_corners: bool, layout: str, dtype: torch.dtype) -> None:
    logits = random(2, 7, 4, 5, dtype=dtype, device=backend.device, layout=layout)
    labels = upsample_argmax(logits, (25, 33), align_corners=align_corners)
    assert labels.dtype == torch.int64
    assert labels.is_contiguous()
    assert_labels_win(labels, logits, (25, 33), align_corners)


@given(
    low=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    high=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    classes=st.integers(1, 6),
    align_corners=st.booleans(),
)
def test_any_shape(
    backend: Backend, low: tuple[int, int], high: tuple[int, int], classes: int, align_corners: bool
) -> None:
    logits = random(2, classes, *low, device=backend.device)
    assert_labels_win(upsample_argmax(logits, high, align_corners=align_corners), logits, high, align_corners)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_label_dtypes(backend: Backend, dtype: torch.dtype) -> None:
    logits = random(1, 256, 2, 3, device=backend.device)
    labels = upsample_argmax(logits, (5, 7), dtype=dtype)
    assert labels.dtype == dtype
    torch.testing.assert_close(labels.long(), upsample_argmax(logits, (5, 7)))


def test_lowest_class_wins_a_tie(backend: Backend) -> None:
    logits = torch.zeros(1, 4, 2, 3, device=backend.device)
    logits[:, 2:] = 1
    assert upsample_argmax(logits, (5, 7)).eq(2).all()


def test_nan_wins(backend: Backend) -> None:
    logits = random(1, 4, 2, 3, device=backend.device)
    logits[:, 1] = torch.nan
    assert upsample_argmax(logits, (5, 7)).eq(1).all()


def test_labels_are_writable_and_carry_no_gradient(backend: Backend) -> None:
    logits = random(1, 4, 2, 3, device=backend.device).requires_grad_()
    labels = upsample_argmax(logits, (5, 7))
    assert not labels.requires_grad
    labels[labels == 1] = 255


def test_empty_batch(backend: Backend) -> None:
    assert upsample_argmax(torch.zeros(0, 4, 2, 3, device=backend.device), (5, 7)).shape == (0, 5, 7)


def test_writes_every_element(backend: Backend) -> None:
    logits = random(2, 4, 3, 3, device=backend.device)
    clean = upsample_argmax(logits, (8, 9), dtype=torch.int32)
    with poisoned():
        torch.testing.assert_close(upsample_argmax(logits, (8, 9), dtype=torch.int32), clean)


def test_same_labels_for_every_number_of_threads(backend: Backend) -> None:
    logits = random(2, 4, 9, 9, device=backend.device)
    labels = upsample_argmax(logits, (65, 65))
    torch.set_num_threads(2)
    torch.testing.assert_close(upsample_argmax(logits, (65, 65)), labels)


def test_meta(backend: Backend) -> None:
    labels = upsample_argmax(torch.zeros(2, 4, 3, 3, device="meta"), (8, 9), dtype=torch.uint8)
    assert (labels.device.type, labels.shape, labels.dtype) == ("meta", (2, 8, 9), torch.uint8)


def test_compile(backend: Backend) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda z: upsample_argmax(z * 2, (8, 9)) + 1, fullgraph=True, backend="aot_eager")
    for size in ((2, 4, 3, 3), (1, 4, 5, 2)):
        logits = random(*size, device=backend.device)
        torch.testing.assert_close(compiled(logits), upsample_argmax(logits, (8, 9)) + 1)


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(
        lambda z: upsample_argmax(z, (8, 9)), [random(2, 4, 3, 3, device=backend.device)], backend.operator(OPERATOR)
    )


def test_autocast_does_not_lose_precision(backend: Backend) -> None:
    logits = random(2, 7, 4, 5, device=backend.device)
    expected = upsample_argmax(logits, (25, 33))
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(upsample_argmax(logits, (25, 33)), expected)


@pytest.mark.parametrize(
    ("shape", "size", "dtype", "error", "words"),
    [
        ((4, 3, 3), (8, 9), torch.int64, ValueError, r"logits must be \[B, C, H, W\], not of shape \(4, 3, 3\)"),
        ((2, 4, 3, 3), (8,), torch.int64, ValueError, r"size must be \(height, width\) .* not \(8,\)"),
        ((2, 4, 3, 3), (8, 0), torch.int64, ValueError, r"size must be \(height, width\) .* not \(8, 0\)"),
        ((2, 4, 3, 3), (8, 9), torch.float32, TypeError, r"dtype must be .* not torch.float32"),
        ((2, 257, 3, 3), (8, 9), torch.uint8, ValueError, r"uint8 holds 256 classes, but logits have 257"),
    ],
)
def test_bad_arguments(
    backend: Backend,
    shape: tuple[int, ...],
    size: tuple[int, int],
    dtype: torch.dtype,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        upsample_argmax(torch.zeros(*shape, device=backend.device), size, dtype=dtype)
