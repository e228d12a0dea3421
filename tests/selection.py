"""Of a test's parameters every pair of values runs, not every product of them: most faults show with some pair.

``PSPNET_FAST_TESTS=all`` runs every product; so does a machine with a GPU, where kernels are verified. The selection is
the same in every run, whatever else is selected by ``-k``. A test of one or two ``parametrize`` runs whole.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import pytest
import torch

ALL = os.environ.get("PSPNET_FAST_TESTS") == "all" or torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
APART = ("operator", "backend")


def select(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The items that run, in their order. The operators' tests cover the pairs of each operator on every back end."""
    if ALL:
        return list(items)
    tests: dict[object, list[pytest.Item]] = {}
    for item in items:
        if not _is_skipped(_parameters(item)):
            own = map(_parameters(item).get, APART)
            tests.setdefault((item.nodeid.partition("[")[0], *own), []).append(item)
    kept = {same[i] for same in tests.values() for i in covering_pairs([_values(item) for item in same])}
    return [item for item in items if item in kept]


def covering_pairs(rows: Sequence[Sequence[Hashable]]) -> Iterator[int]:
    """Indices of rows in which every pair of values of ``rows`` is: always the row with most that none yet has."""
    missing = [set(itertools.combinations(enumerate(["", *row]), 2)) for row in rows]  # "": a value has its pair too
    missing = [pairs or {()} for pairs in missing]
    while any(missing):
        best = max(range(len(rows)), key=lambda i: len(missing[i]))
        covered = set(missing[best])
        for pairs in missing:
            pairs -= covered
        yield best


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _values(item: pytest.Item) -> list[Hashable]:
    """One for each ``parametrize``, of which a line of a table of cases is one value, and for each fixture's parameter.

    The operator and the back end are not among them: the pairs are covered on each.
    """
    found: list[Hashable] = []
    others = {name: id(value) for name, value in _parameters(item).items() if name not in APART}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].replace(",", " ").split() if isinstance(mark.args[0], str) else mark.args[0]
        found.append(tuple(others.pop(name, None) for name in names))
    return [*found, *others.values()]


def _is_skipped(parameters: dict[str, Any]) -> bool:
    """Whether Backend.require skips these in Triton's interpreter: their pairs must run with others."""
    if not INTERPRETED or parameters.get("backend") != "triton":
        return False
    dtype = parameters.get("dtype", torch.float32)
    return dtype == torch.bfloat16 or (dtype != torch.float32 and bool(parameters.get("options")))
