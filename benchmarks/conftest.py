"""Options, session and closing tables of `pytest benchmarks/` (see README.md beside this file)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.provenance import cpu_model, machine
from benchmarks.store import ResultFile
from benchmarks.suite.cases import group_name, peer_id, peers_and_absent, suite_cases
from benchmarks.suite.recording import replayed_clock
from benchmarks.suite.session import Plan, Session
from benchmarks.suite.tables import summary

# Beside the tables below, what pytest-benchmark compares runs by.
COLUMNS = ["median", "iqr", "min", "rounds"]
QUICK_SECONDS = 0.3  # of each peer's rounds, at most, with --quick
SESSION = pytest.StashKey[Session]()
LOAD = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pspnet_fast")
    group.addoption("--quick", action="store_true", help="small shapes: within five minutes on two cores")
    group.addoption(
        "--device", choices=("cpu", "cuda"), help="where to measure; the GPU by default, where torch sees one"
    )
    group.addoption(
        "--save",
        action="store_true",
        help="keep every case in benchmarks/results/suite_{cpu,gpu}.json as it is measured, beside what this machine "
        "measured before on the same sources (so that -k can divide a run)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_columns = config.option.benchmark_columns or COLUMNS
    config.stash[LOAD] = os.getloadavg()[0]
    if config.getoption("save", False) and quick(config):
        raise pytest.UsageError("--save: what --quick measures is not to be quoted; leave one of them out")
    if config.option.benchmark_json is not None:  # pytest-benchmark would fail for want of it when all is measured
        config.option.benchmark_json.parent.mkdir(parents=True, exist_ok=True)


def device_of(config: pytest.Config) -> str:
    """What ``--device`` says, else the GPU, where there is one."""
    return config.getoption("device", None) or ("cuda" if torch.cuda.is_available() else "cpu")


def machine_of(config: pytest.Config) -> dict[str, Any]:
    """What every result file of this project says of its origin, and how busy the machine was before the run."""
    device = {"device": cpu_model()} if device_of(config) == "cpu" else {}
    load: float = config.stash[LOAD]
    return {**machine(), **device, "load": round(load, 2), "cores": os.cpu_count()}


def result_name(device: str) -> str:
    """The file of ``--save`` in results/ without its suffix."""
    return f"suite_{'gpu' if device == 'cuda' else 'cpu'}"


def quick(config: pytest.Config) -> bool:
    return bool(config.getoption("quick", False))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every peer of every case, in groups by operator, shape and arrangement."""
    if "peer" not in metafunc.fixturenames:
        return
    parameters = [
        pytest.param(
            case,
            peer,
            id=peer_id(case, peer),
            marks=pytest.mark.benchmark(group=group_name(case), timer=replayed_clock),
        )
        for case in suite_cases(device_of(metafunc.config), quick=quick(metafunc.config))
        for peer in peers_and_absent(case)
    ]
    metafunc.parametrize(("case", "peer"), parameters)


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Measures the peers that were selected on the command line, and no others."""
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "peer" in parameters:
            wanted.setdefault(parameters["case"].id, []).append(parameters["peer"])
    option = request.config.option
    seconds = float(option.benchmark_max_time)
    plan = Plan(
        device_of(request.config),
        quick(request.config),
        rounds=option.benchmark_min_rounds,
        seconds=min(seconds, QUICK_SECONDS) if quick(request.config) else seconds,
    )
    file = None
    if request.config.getoption("save", False):
        file = ResultFile(result_name(plan.device), lambda row: row["case"], resume=True)
    session = request.config.stash[SESSION] = Session(plan, wanted, file)
    yield session
    session.close()


@pytest.hookimpl(trylast=True)  # behind pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(SESSION, None)
    rows = [] if session is None else [outcome.row for outcome in session.outcomes.values()]
    lines = list(summary(rows, machine_of(config)))
    if lines:
        terminalreporter.section("pspnet_fast beside its peers")
    for line in lines:
        terminalreporter.write_line(line, red="FAILED: " in line)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["machine"] = machine_of(config)
