from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for graphs and models


@pytest.fixture(autouse=True)
def _fuse_small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of these tests no fused convolution would be faster."""
    monkeypatch.setattr("pspnet_fast.fusion.cost._NODE", -math.inf)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
