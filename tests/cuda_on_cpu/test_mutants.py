"""The operators' tests, run as run.py runs them, turn red over kernels with a planted fault."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from compiling import CUDA, ROOT, build
from forks import Forks
from mutant import Mutant
from mutants import MUTANTS
from run import arguments, environment

OTHER_TYPES = "float64 or float16"  # in names of tests, with bfloat16


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    build([mutant.plant() for mutant in MUTANTS])


@pytest.fixture(scope="module")
def forks() -> Iterator[Callable[[Mutant], Forks]]:
    """For a mutant, the process whose forks run tests as its variant is run."""
    made: dict[str, Forks] = {}

    def of(mutant: Mutant) -> Forks:
        if mutant.variant not in made:
            variables = environment(mutant.variant, mutant.plant().output)
            made[mutant.variant] = Forks(ROOT, {**variables, "PSPNET_FAST_TESTS": "all"})  # ends with the first failure
        return made[mutant.variant]

    yield of
    for process in made.values():
        process.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_fault_turns_the_tests_red(mutant: Mutant, forks: Callable[[Mutant], Forks]) -> None:
    tests, _, operator = mutant.tests.rstrip("]").partition("[")
    names = [operator, "" if mutant.every_type else f"not ({OTHER_TYPES})"]
    options = ["-x", "-p", "no:cacheprovider", *arguments(mutant.variant, [tests], " and ".join(filter(None, names)))]
    code, printed = forks(mutant).run(mutant.plant().output, options)
    assert code == 1, printed
    assert re.search(mutant.shows, printed), printed


def test_every_kernel_has_mutants() -> None:
    assert {mutant.unit or mutant.file for mutant in MUTANTS} == {path.name for path in CUDA.glob("*.cu")}


def test_a_text_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"its text stands 0 times in pyramid_pool_nchw\.cu"):
        replace(MUTANTS[0], before="no such text").plant()
