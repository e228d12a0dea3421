from __future__ import annotations

import os

import pytest
from compiling import missing_tool


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    """Needs g++ and ninja; without them a run that must have seen the CUDA kernels fails."""
    missing = missing_tool()
    if missing and "cuda" in os.environ.get("PSPNET_FAST_EXPECT_BACKENDS", ""):
        pytest.fail(f"csrc/cuda cannot be compiled for the CPU: {missing}")
    if missing:
        pytest.skip(f"csrc/cuda cannot be compiled for the CPU: {missing}")
