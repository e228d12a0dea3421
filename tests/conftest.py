"""What every test must leave as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn


@pytest.fixture(autouse=True)
def modules_are_called_as_before() -> Iterator[None]:
    """Tracers replace methods of ``nn.Module``: one that stays breaks the tests that follow."""
    before = {name: getattr(nn.Module, name) for name in ("__call__", "__getattr__")}
    yield
    changed = [name for name, method in before.items() if getattr(nn.Module, name) is not method]
    for name in changed:
        setattr(nn.Module, name, before[name])
    assert not changed, f"the test leaves nn.Module with another {', '.join(changed)}"
