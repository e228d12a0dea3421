"""The selection of tests covers every pair of values, and leaves out nothing that is one of a kind."""

from __future__ import annotations

import itertools

import pytest
from selection import covering_pairs

pytest_plugins = ["pytester"]


def pairs(rows):
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(4, 4, 2), (3, 3, 3, 3), (2, 5, 1, 2, 2)])
def test_every_pair_with_fewer_rows(sizes):
    rows = list(itertools.product(*(range(size) for size in sizes)))
    kept = list(covering_pairs(rows))
    assert pairs(rows[i] for i in kept) == pairs(rows)
    assert len(set(kept)) == len(kept) < len(rows) / 1.5
    assert kept == list(covering_pairs(rows))


def test_rows_of_one_or_two_values_are_all_kept():
    for rows in ([()], [("a",), ("b",)], list(itertools.product("ab", "abc"))):
        assert sorted(covering_pairs(rows)) == list(range(len(rows)))


@pytest.mark.parametrize(("everything", "count"), [(False, 6), (True, 12)])
def test_products_are_reduced_unless_all_is_requested(pytester, monkeypatch, everything, count):
    monkeypatch.setattr("selection.ALL", everything)
    pytester.makeconftest("""
        from selection import select
        def pytest_collection_modifyitems(items): items[:] = select(items)
    """)
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("c", [1, 2])
        @pytest.mark.parametrize("b", [1, 2])
        @pytest.mark.parametrize("a, line", [(1, 1), (1, 2), (2, 1)])
        def test_three(a, line, b, c): pass
        @pytest.mark.parametrize("a", [1, 1.5, 2])
        def test_one(a): pass
        def test_none(): pass
        @pytest.fixture(params=["drawn", "stored"])
        def data(request): return request.param
        @pytest.mark.parametrize("a", [1, 2])
        def test_fixture(data, a): pass
    """)
    assert pytester.inline_run("-q").countoutcomes()[0] == count + 3 + 1 + 4
