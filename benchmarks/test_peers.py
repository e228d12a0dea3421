"""Every operator and network, compared with its peers: results must agree; then all peers of a case are timed in turn.

    pytest benchmarks/ --quick                                small shapes, in some minutes
    pytest benchmarks/ -k "projects and psp_head and semseg"  some cases; "and not compile": without a peer
    pytest benchmarks/ --benchmark-disable                    results alone
    pytest benchmarks/ -k "operators or network" --save       for README.md and docs/benchmarks.md

A wrong result fails; time never does. A peer that cannot run here is skipped, with the reason. The name of a test is
that of its table in cases.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from benchmarks.case import Case
from benchmarks.clock import Benchmark, record
from benchmarks.peers import is_ours
from benchmarks.session import Session


def check(case: Case, peer: str, table: str, session: Session, benchmark: Benchmark, resume: bool) -> None:
    """Measure the peer's case, if no test before has, and report what became of the peer."""
    file = session.file(table)
    if resume and file is not None and file.has(case.id) and case.id not in session.outcomes:
        pytest.skip(f"{file.path} has it")
    outcome = session.outcome(case, table, timed=benchmark.enabled)
    if reason := outcome.row["skipped"].get(peer):
        pytest.skip(f"{peer}: {reason}")
    if reason := outcome.wrong(peer):
        pytest.fail(f"{peer} {reason}")
    if reason := outcome.broken(peer):
        # Another project's peer may have no compiler here, or no memory; ours must run.
        (pytest.fail if is_ours(peer) else pytest.skip)(f"{peer}: {reason}")
    if outcome.unchecked:
        pytest.skip(f"{peer}: no other peer ran, so that nothing says whether its result is right")
    record(benchmark, outcome, peer)


@pytest.fixture
def measured(
    case: Case, peer: str, session: Session, benchmark: Benchmark, request: pytest.FixtureRequest
) -> Callable[[], None]:
    """What a test does: :func:`check` for the table of its name."""
    table = request.function.__name__.removeprefix("test_")
    return functools.partial(check, case, peer, table, session, benchmark, request.config.getoption("resume"))


def test_operators(measured: Callable[[], None]) -> None:
    """Typical shapes and every layout, as this package's network has them."""
    measured()


def test_projects(measured: Callable[[], None]) -> None:
    """Each project's arrangement at the shapes of published trainings."""
    measured()


def test_network(measured: Callable[[], None]) -> None:
    """A training step of PSPNet50, and inference."""
    measured()


def test_end_to_end(measured: Callable[[], None]) -> None:
    """Images a second, and the largest batches of PSPNet50 and 101."""
    measured()


def test_scaling(measured: Callable[[], None]) -> None:
    """Time and memory over classes, batch, size and threads."""
    measured()
