"""The operators' tests, run as run.py runs them, turn red over kernels with a planted fault."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from compiling import CUDA, ROOT, build
from mutants import MUTANTS, Mutant
from run import arguments, environment


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    build([mutant.plant() for mutant in MUTANTS])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_fault_turns_the_tests_red(mutant: Mutant) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    command += arguments(mutant.variant, [mutant.tests])
    own = environment(mutant.variant, mutant.plant().output)
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False, timeout=300)
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    assert re.search(mutant.shows, printed), printed


def test_every_kernel_has_mutants() -> None:
    assert {mutant.unit or mutant.file for mutant in MUTANTS} == {path.name for path in CUDA.glob("*.cu")}


def test_a_text_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"its text stands 0 times in pyramid_pool_nchw\.cu"):
        replace(MUTANTS[0], before="no such text").plant()
