"""Every operator and network, compared with its peers: results must agree; then all peers of a case are timed in turn.

A wrong result fails; time never does. A peer that cannot run here is skipped, with the reason. A test's name begins
with that of its table in cases.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.case import Case
from benchmarks.conftest import record
from benchmarks.peers import is_ours
from benchmarks.session import Session


def test_peer(table: str, case: Case, peer: str, session: Session, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Measure the peer's case, if no test before has, and report what became of the peer."""
    file = session.file(table)
    if pytestconfig.getoption("resume") and file and file.has(case.id) and case.id not in session.outcomes:
        pytest.skip(f"{file.path} has it")
    outcome = session.outcome(case, table, timed=benchmark.enabled)
    row, compared = outcome.row, outcome.row.get("difference", {})
    if reason := row["skipped"].get(peer):
        pytest.skip(f"{peer}: {reason}")
    if reason := row["failures"].get(peer) or row["failures"].get("all"):
        # Another project's peer may have no compiler here, or no memory; ours must run, and no result may be wrong.
        wrong = peer in row["failures"] and peer in compared
        (pytest.fail if wrong or is_ours(peer) else pytest.skip)(f"{peer}: {reason}")
    if all(is_ours(other) for other in compared):  # no memory for full-resolution logits?
        pytest.skip(f"{peer}: no other peer ran, so that nothing says whether its result is right")
    record(benchmark, outcome, peer)
