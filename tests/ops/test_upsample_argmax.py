from __future__ import annotations

import pytest
import torch
from running import LABELS, LAYOUTS, Backend, random

from pspnet_fast import upsample_argmax

OPERATOR = "upsample_argmax"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LABELS, ids=str)
def test_label_dtypes(backend: Backend, dtype: torch.dtype, layout: str) -> None:
    logits = random(1, 256, 2, 3, device=backend.device, layout=layout)
    labels, expected = upsample_argmax(logits, (5, 7), dtype=dtype), upsample_argmax(logits, (5, 7))
    assert (labels.dtype, expected.dtype) == (dtype, torch.int64)
    assert labels.is_contiguous()
    torch.testing.assert_close(labels.long(), expected)


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
