"""A hundred random graphs of interpolate, cat, conv, add, slices, in-place writes, arg-max and losses against stock."""

import pytest
from graphs import compare


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_random_graphs_equal_stock(first):
    found = {seed: compare(seed) for seed in range(first, first + 10)}
    assert {seed: what for seed, what in found.items() if what not in (None, "skipped")} == {}
    assert list(found.values()).count("skipped") < 5
