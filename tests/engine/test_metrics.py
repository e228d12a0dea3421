"""Metrics against counting pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pspnet_fast.engine import ConfusionMatrix, Metrics


def brute_force(prediction: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes, classes), dtype=np.int64)
    for p, t in zip(prediction.ravel(), target.ravel(), strict=True):
        if t != 255:
            counts[t, p] += 1
    return counts


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_confusion_matrix(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    matrix, expected = ConfusionMatrix(5), np.zeros((5, 5), dtype=np.int64)
    for _ in range(3):
        prediction, target = rng.integers(0, 5, (2, 7, 9)), rng.integers(0, 5, (2, 7, 9))
        target[rng.random(target.shape) < 0.2] = 255
        matrix.update(torch.from_numpy(prediction).to(dtype), torch.from_numpy(target).to(dtype))
        expected += brute_force(prediction, target, 5)
    assert matrix.counts.dtype == torch.int64
    torch.testing.assert_close(matrix.counts, torch.from_numpy(expected), rtol=0, atol=0)


def test_counts_beyond_float32() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[1, 1] = 2**24
    matrix.update(torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    assert matrix.counts[1, 1] == 2**24 + 1


@pytest.mark.parametrize("ignore_index", [-1, -100])
def test_uint8_labels_do_not_wrap_around_to_a_negative_ignore_index(ignore_index: int) -> None:
    label = ignore_index % 256
    matrix = ConfusionMatrix(256, ignore_index=ignore_index)
    matrix.update(torch.tensor([label], dtype=torch.uint8), torch.tensor([label], dtype=torch.uint8))
    assert matrix.counts[label, label] == 1


def test_deterministic_mode_needs_no_memory_for_each_pixel_and_class() -> None:
    matrix, labels = ConfusionMatrix(150), torch.randint(0, 150, (20, 30))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.profiler.profile(profile_memory=True) as profile:
            matrix.update(labels, labels)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(event.cpu_memory_usage for event in profile.events()) < 100 * labels.nbytes
    assert matrix.counts.sum() == labels.numel()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(4,\).*\(2, 2\)"):
        ConfusionMatrix(2).update(torch.zeros(4), torch.zeros(2, 2))


def test_means() -> None:
    # Class 2 is neither labelled nor predicted and counts nowhere; class 3 is predicted only: IoU 0, no accuracy.
    counts = torch.zeros(4, 4, dtype=torch.int64)
    counts[0, 0], counts[0, 1], counts[1, 1], counts[1, 3] = 6, 2, 3, 1
    metrics = Metrics(counts, ("a", "b", "c", "d"))

    torch.testing.assert_close(metrics.iou[[0, 1, 3]], torch.tensor([6 / 8, 3 / 6, 0.0], dtype=torch.float64))
    assert math.isnan(metrics.iou[2])
    assert metrics.miou == pytest.approx((6 / 8 + 3 / 6 + 0) / 3)
    assert metrics.macc == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert metrics.accuracy == pytest.approx(9 / 12)

    record = metrics.to_dict()
    assert record["classes"]["c"] == {"iou": None, "accuracy": None}
    assert record["confusion"][0] == [6, 2, 0, 0]
    assert metrics.table().row_count == 6
