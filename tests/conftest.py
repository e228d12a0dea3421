"""What all tests share: PyTorch's own products in full float32, what a test must leave as it was, and settings that are
read when libraries start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# cuBLAS is deterministic only with a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Else every process that compiles for a GPU starts one compiler for each core; tests run in several processes.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
from selection import select
from torch import nn


@pytest.hookimpl(tryfirst=True)  # before -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = select(items)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """The same random numbers in every run; one thread, in whose sums the order is fixed; and no TF32, by which a GPU's
    convolutions have three correct digits unless it is switched off.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def modules_are_called_as_before() -> Iterator[None]:
    """Tracers replace methods of ``nn.Module``: one that stays breaks the tests that follow."""
    before = {name: getattr(nn.Module, name) for name in ("__call__", "__getattr__")}
    yield
    changed = [name for name, method in before.items() if getattr(nn.Module, name) is not method]
    for name in changed:
        setattr(nn.Module, name, before[name])
    assert not changed, f"the test leaves nn.Module with another {', '.join(changed)}"
