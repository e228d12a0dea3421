from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(autouse=True)
def _fuse_small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of these tests no fused convolution would be faster."""
    monkeypatch.setattr("pspnet_fast.fusion.cost._NODE", -math.inf)


@pytest.fixture
def fresh_compiler():
    """Nothing that was compiled before is used, nor what is compiled here afterwards."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
