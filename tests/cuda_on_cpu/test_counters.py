"""docs/counters.md is what the kernels ask of a GPU today, and it is near the least; planted faults show in it."""

from __future__ import annotations

import pytest
from compiling import compiler_version, operators
from counters import Counted, count
from counters_page import AGAIN, EXCEPTIONS, MOST_MOVED, PAGE, bytes_rows, kernel_rows, line_of, line_rows
from mutant import Mutant


@pytest.fixture(scope="module")
def counted() -> Counted:
    return count(operators("counted"))


def differing(rows: list[list[str]], of: str = "") -> list[tuple[str, str]]:
    """Rows that do not begin lines of the page as they should, in the same order; ``of`` a kernel, say."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `") and of in line]
    expected = [line_of(row).rstrip() for row in rows if of in row[0]]
    assert len(lines) == len(expected), f"docs/counters.md has other rows: {AGAIN}"
    return [(a, b) for a, b in zip(expected, lines, strict=True) if not b.startswith(a)]


def test_page_is_what_is_counted(counted: Counted) -> None:
    if compiler_version() not in PAGE.read_text():
        pytest.skip(f"not the compiler that counted for docs/counters.md: {compiler_version()}")
    rows = [*bytes_rows(counted), *kernel_rows(counted), *line_rows(counted)]
    assert differing(rows) == [], f"docs/counters.md differs: {AGAIN}"


def test_what_moves_is_near_the_floor(counted: Counted) -> None:
    """An exception has a reason, none is left over, and its limit is no higher than it must be."""
    most: dict[str, float] = {}
    for (operator, _), one in counted.calls.items():
        most[operator] = max(most.get(operator, 0), one.moved / one.floor)
        assert one.floor <= one.moved <= one.requested
    above = {operator: times for operator, times in most.items() if times > MOST_MOVED}
    assert above.keys() == EXCEPTIONS.keys()
    for operator, times in above.items():
        assert times <= EXCEPTIONS[operator][0] < 1.05 * times, operator


# ---- Planted faults -------------------------------------------------------------------------------------------------


def fault(name: str, before: str, after: str) -> Mutant:
    return Mutant(f"counted_{name}", "pyramid_pool_nhwc.cu", before, after, "", "", "counted", every_type=True)


UNCOALESCED = fault(
    "uncoalesced", "kThreads + threadIdx.x) * VEC,", "kThreads + threadIdx.x % 32 * 8 + threadIdx.x / 32) * VEC,"
)
BANK_CONFLICT = fault("bank_conflict", "sums[kBinChannels][kBinTile + 1]", "sums[kBinChannels][kBinTile]")


@pytest.mark.parametrize(
    ("planted", "kernel", "what"),
    [
        (UNCOALESCED, "pyramid_pool_fwd_nhwc_kernel<", "global loads"),
        (BANK_CONFLICT, "pyramid_pool_fwd_bins_kernel<", "shared loads"),
    ],
    ids=lambda value: value.name if isinstance(value, Mutant) else "",
)
def test_planted_fault_differs_from_the_page(planted: Mutant, kernel: str, what: str, counted: Counted) -> None:
    faulty = count(planted.plant(), ["pool", "levels"])  # both pool
    assert differing(kernel_rows(faulty), kernel) != []
    elsewhere = "pyramid_pool_fwd_nchw_kernel<"
    assert [r for r in kernel_rows(faulty) if elsewhere in r[0]] == [
        r for r in kernel_rows(counted) if elsewhere in r[0]
    ]
    assert times_the_fewest(faulty, kernel, what) > 1.5 * times_the_fewest(counted, kernel, what)


def times_the_fewest(counted: Counted, kernel: str, what: str) -> float:
    (total,) = counted.sums(lambda site: what if (site.what == what and kernel in site.kernel) else None).values()
    return total.units / total.fewest
