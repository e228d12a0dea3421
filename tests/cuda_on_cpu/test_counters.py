"""docs/counters.md is what the kernels ask of a GPU today, and it is near the least; planted faults show in it."""

from __future__ import annotations

import pytest
from compiling import compiler_version, operators
from counters import Counted, count
from counters_page import AGAIN, EXCEPTIONS, PAGE, counted_part, requests_table, too_much_moved
from mutant import Mutant


@pytest.fixture(scope="module")
def counted() -> Counted:
    return count(operators("counted"))


def missing(text: str, of: str = "") -> list[str]:
    """Lines of a text that the page does not have; ``of`` a kernel, say."""
    there = PAGE.read_text().splitlines()
    return [line for line in text.splitlines() if of in line and line not in there]


def test_page_is_what_is_counted(counted: Counted) -> None:
    assert compiler_version() in PAGE.read_text(), f"counted with another compiler: {AGAIN}"
    assert missing(counted_part(counted)) == [], f"docs/counters.md differs: {AGAIN}"


def test_what_moves_is_near_the_floor(counted: Counted) -> None:
    """An exception has a reason, and none is left over."""
    assert too_much_moved(counted).keys() == EXCEPTIONS.keys()


# ---- Planted faults -------------------------------------------------------------------------------------------------


def fault(name: str, before: str, after: str) -> Mutant:
    return Mutant(f"counted_{name}", "pyramid_pool_nhwc.cu", before, after, "", "", "counted")


UNCOALESCED = fault(
    "uncoalesced", "kThreads + threadIdx.x) * VEC,", "kThreads + threadIdx.x % 32 * 8 + threadIdx.x / 32) * VEC,"
)
BANK_CONFLICT = fault("bank_conflict", "sums[kBinChannels][kBinTile + 1]", "sums[kBinChannels][kBinTile]")


@pytest.mark.parametrize(
    ("planted", "kernel", "what"),
    [
        (UNCOALESCED, "pyramid_pool_fwd_nhwc_kernel", "global loads"),
        (BANK_CONFLICT, "pyramid_pool_fwd_bins_kernel", "shared loads"),
    ],
    ids=lambda value: value.name if isinstance(value, Mutant) else "",
)
def test_planted_fault_differs_from_the_page(planted: Mutant, kernel: str, what: str, counted: Counted) -> None:
    faulty = count(planted.plant(), ["pool", "levels"])  # both pool
    assert missing(requests_table(faulty), kernel) != []
    assert missing(requests_table(faulty), "pyramid_pool_fwd_nchw_kernel") == []
    assert times_the_fewest(faulty, kernel, what) > 1.5 * times_the_fewest(counted, kernel, what)


def times_the_fewest(counted: Counted, kernel: str, what: str) -> float:
    lines = [one for line, one in counted.lines.items() if (line.kernel, line.what) == (kernel, what)]
    return sum(one.units for one in lines) / sum(one.fewest for one in lines)
