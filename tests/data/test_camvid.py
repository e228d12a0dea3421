"""The real CamVid, where PSPNET_FAST_CAMVID names its folder."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils.data import DataLoader

from pspnet_fast.data import eval_transform, open_dataset, train_transform

ROOT = os.environ.get("PSPNET_FAST_CAMVID")
pytestmark = pytest.mark.skipif(ROOT is None, reason="PSPNET_FAST_CAMVID does not name the folder of CamVid")


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_every_sample_reads(split: str, count: int) -> None:
    dataset = open_dataset("camvid", ROOT, split)
    assert len(dataset) == count

    pixels = torch.zeros(256, dtype=torch.int64)
    for image, label in dataset:
        assert image.shape == (3, 360, 480)
        pixels += label.flatten().bincount(minlength=256)
    assert pixels[:11].min() > 0
    assert pixels[11:255].sum() == 0
    assert pixels[3] / pixels[:11].sum() > 0.2  # a street scene is a quarter road


def test_batches() -> None:
    dataset = open_dataset("camvid", ROOT, "train", transform=train_transform(201))
    images, labels = next(iter(DataLoader(dataset, batch_size=8, num_workers=2)))
    assert (images.shape, images.dtype) == ((8, 3, 201, 201), torch.float32)
    assert (labels.shape, labels.dtype) == ((8, 201, 201), torch.uint8)
    assert images.abs().max() < 3

    image, label = open_dataset("camvid", ROOT, "val", transform=eval_transform())[0]
    assert image.shape[1:] == label.shape == (360, 480)
