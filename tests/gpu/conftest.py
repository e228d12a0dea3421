"""Tests of a GPU: real sizes, streams, graphs, which are skipped elsewhere; and small sizes, for compute-sanitizer.

A test that asks for ``backend`` runs on ``reference``, ``triton`` and ``cuda``; one that cannot run is skipped, and
fails where the environment variable ``PSPNET_FAST_EXPECT_BACKENDS`` names it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pspnet_fast.backend import kernels, unavailable, use_backend
from pspnet_fast.ops.operator import OPERATORS

BACKENDS = ("reference", "triton", "cuda")
EXPECTED = set(filter(None, os.environ.get("PSPNET_FAST_EXPECT_BACKENDS", "").split(",")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        definition = item.path.name == "test_small_sizes.py" and "[reference" in item.name
        if Path(__file__).parent in item.path.parents and not definition:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything in the test runs on this back end."""
    name: str = request.param
    reasons = {unavailable(operator, name, "cuda") for operator in OPERATORS if name in kernels(operator)}
    if missing := "; ".join(sorted(reason for reason in reasons if reason)):
        assert name not in EXPECTED, f"{name} was expected, but {missing}"
        pytest.skip(missing)
    with use_backend(name):
        yield name


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """A fixed seed, and no memory left for the next test."""
    torch.manual_seed(0)
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
