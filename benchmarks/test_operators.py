"""Every operator beside its peers: results must agree; then all peers of a group are timed in turn.

    pytest benchmarks/                                     every configuration (long on a CPU: take some)
    pytest benchmarks/ --quick                             small shapes, in some minutes
    pytest benchmarks/ -k "psp_head and mmsegmentation"    some groups; "and not compile": without a peer
    pytest benchmarks/ --benchmark-disable                 results alone

A wrong result fails; time never does. A peer that cannot run here is skipped, with the reason.
"""

from __future__ import annotations

import pytest

from benchmarks.case import Case, is_ours
from benchmarks.suite.recording import Benchmark, record
from benchmarks.suite.session import Session


def test_peer(case: Case, peer: str, session: Session, benchmark: Benchmark) -> None:
    if reason := case.absent.get(peer):
        pytest.skip(f"{peer}: {reason}")
    outcome = session.outcome(case, timed=benchmark.enabled)
    if reason := outcome.wrong(peer):
        pytest.fail(f"{peer} {reason}")
    if reason := outcome.broken(peer):
        # Another project's peer may have no compiler here, or no memory; ours has no excuse.
        (pytest.fail if is_ours(peer) else pytest.skip)(f"{peer}: {reason}")
    if outcome.unchecked:
        pytest.skip(f"{peer}: no other peer ran, so that nothing says whether its result is right")
    record(benchmark, outcome, peer)
