"""Options, session, clock and closing tables of `pytest benchmarks/` (see README.md in this folder).

pytest-benchmark times one test after the other: peers timed minutes apart, on a machine whose clock moves. So all peers
of a case are timed in turn (:func:`benchmarks.measure.interleaved`), and each test lets pytest-benchmark "time" a peer
with a clock that replays its rounds. Statistics, storage and comparisons hold real rounds; what pytest-benchmark has no
column for (percentiles, ratios, memory, floor) is in ``extra_info``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import markdown as md
from benchmarks.cases import TABLES, cases_of
from benchmarks.markdown import Column, Row
from benchmarks.results import RESULTS, machine
from benchmarks.session import Outcome, Session

COLUMNS = ["median", "iqr", "min", "rounds"]  # besides the closing tables, what pytest-benchmark compares runs by
QUICK_SECONDS = 0.1  # of each peer's rounds, at most, with --quick
SESSION = pytest.StashKey[Session]()
LOAD = pytest.StashKey[float]()


READINGS: list[float] = []  # of the clock, to come: 0 as a round starts, and its duration as it ends


def replayed_clock() -> float:
    """The timer of every benchmark here."""
    return READINGS.pop(0)


def record(benchmark: Any, outcome: Outcome, peer: str) -> None:
    """Enter a peer's rounds, and the row of its case; nothing under ``--benchmark-disable``."""
    milliseconds = outcome.rounds.get(peer, [])
    if milliseconds:
        READINGS[:] = [reading for value in milliseconds for reading in (0.0, value / 1e3)]
        benchmark.extra_info.update(peer=peer, row=outcome.row)
    benchmark.pedantic(lambda: None, rounds=len(milliseconds) or 1, iterations=1)


def pytest_addoption(parser: pytest.Parser) -> None:
    option = parser.getgroup("pspnet_fast").addoption
    option("--quick", action="store_true", help="small shapes: within five minutes on two cores")
    option("--device", choices=("cpu", "cuda"), help="by default the GPU, where torch sees one")
    saved = "keep every case in TABLE_{cpu,gpu}.json as it is measured (by default in benchmarks/results)"
    option("--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help=saved)
    option("--resume", action="store_true", help="with --save: skip what this machine measured on these sources")
    option("--network", default="", help='of the table end_to_end: "layers=50 size=713 classes=150 batch=4 ..."')


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_columns = config.option.benchmark_columns or COLUMNS
    config.stash[LOAD] = os.getloadavg()[0]
    if config.getoption("save", None) and config.getoption("quick"):
        raise pytest.UsageError("--save: what --quick measures is not to be quoted; leave one of them out")
    if config.option.benchmark_json is not None:  # pytest-benchmark would fail for want of it when all is measured
        config.option.benchmark_json.parent.mkdir(parents=True, exist_ok=True)


def device_of(config: pytest.Config) -> str:
    """What ``--device`` says, else the GPU, where there is one."""
    return config.getoption("device", None) or ("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every peer of every case of every table, in groups by case."""
    if "peer" not in metafunc.fixturenames:
        return
    config, parameters = metafunc.config, []
    for name in TABLES:
        options = {"options": config.getoption("network")} if name == "end_to_end" else {}
        try:
            cases = cases_of(name, device_of(config), quick=config.getoption("quick"), **options)
        except ValueError as error:
            raise pytest.UsageError(f"--network: {error}") from error
        for case in cases:
            mark = pytest.mark.benchmark(group=case.name, timer=replayed_clock)
            for peer in dict.fromkeys((*case.peers, *case.skipped)):
                test = f"{name}/{case.id.rpartition('/')[0]}/{peer}".replace("/", "-").replace(" ", "_")
                parameters.append(pytest.param(name, case, peer, id=test, marks=mark))
    metafunc.parametrize(("table", "case", "peer"), parameters)


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    """Measures the peers that were selected on the command line, and no others."""
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "peer" in parameters:
            wanted.setdefault(parameters["case"].id, []).append(parameters["peer"])
    option, device = request.config.option, device_of(request.config)
    seconds = float(option.benchmark_max_time)
    seconds = min(seconds, QUICK_SECONDS) if option.quick else seconds
    session = Session(device, wanted, option.benchmark_min_rounds, seconds, option.quick, option.save)
    request.config.stash[SESSION] = session
    return session


@pytest.hookimpl(trylast=True)  # behind pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(SESSION, None)
    lines = [] if session is None else list(summary([outcome.row for outcome in session.outcomes.values()], config))
    if lines:
        terminalreporter.section("pspnet_fast compared with its peers")
    for line in lines:
        terminalreporter.write_line(line, red="FAILED: " in line)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["machine"] = {**machine(device_of(config)), "load": config.stash[LOAD], "cores": os.cpu_count()}


# ---- the end of a run ------------------------------------------------------------------------------------------------

IDLE = 0.25  # of the cores: a load up to this was the shell, and an editor
LABELS = (
    "axis", "value", "model", "configuration", "shape", "dtype", "layout", "direction", "logits", "compiled",
    "arrangement",
)  # fmt: skip
LEGEND = (
    "eager: stock operators as the project named in the heading arranges them; compile: torch.compile of the same; "
    "a project's own name: its installed package.",
    "Medians and 20th to 80th percentiles of rounds in which all peers of a table took their turn; x ours: of medians, "
    "to the fastest pspnet_fast.",
    "Peak: memory beyond inputs and weights. Floor: the longer of bytes over copy bandwidth and FLOP over the better "
    "rate of a matrix product and a convolution.",
    "No page faults: the same in a process whose C library keeps its memory. Graph: replayed as a CUDA graph.",
)


PEER_COLUMNS: tuple[Column, ...] = (
    ("", "l", lambda row: row["peer"]),
    ("median", "r", md.of_peer(md.median_time, "milliseconds")),
    ("p20 to p80", "r", md.spread),
    ("x ours", "r", md.of_peer("{:.2f}".format, "ratio")),
    ("images/s", "r", md.of_peer(str, "images_per_second")),
    ("peak", "r", md.of_peer(md.megabytes, "peak_bytes")),
    ("of floor", "r", md.of_peer(lambda share: md.percent(share, 1), "floor_reached")),
    ("graph", "r", md.of_peer(md.median_time, "graph_milliseconds")),
    ("no page faults", "r", md.of_peer(md.median_time, "without_page_faults", "milliseconds")),
    ("x ours ", "r", md.of_peer("{:.2f}".format, "without_page_faults", "times_ours")),
)


def case_table(row: Row) -> Iterator[str]:
    """Heading, floor, and a line for each peer: those that were timed, then those that were not and why."""
    yield ", ".join([row["operator"], *(str(row[name]) for name in LABELS if name in row)])
    if (floor := row.get("floor")) and floor["flops"]:
        yield (
            f"floor: {floor['memory_milliseconds']:.4g} ms for {floor['bytes'] / 1e6:.4g} MB, "
            f"{floor['arithmetic_milliseconds']:.4g} ms for {floor['flops'] / 1e9:.4g} GFLOP in {floor['rate']}"
        )
    if peers := md.by_peer([row]):
        columns = [column for column in PEER_COLUMNS if any(column[2](peer) != md.NOTHING for peer in peers)]
        yield from md.table(columns, peers).splitlines()
    yield from (f"{peer}: {reason}" for peer, reason in row.get("skipped", {}).items())
    yield from (f"{peer} FAILED: {reason}" for peer, reason in row["failures"].items())
    for memory, found in row.get("largest_batch", {}).items():
        yield f"largest batch in {memory} GB: {', '.join(f'{peer} {batch}' for peer, batch in found.items())}"


def summary(rows: Iterable[Row], config: pytest.Config) -> Iterator[str]:
    """The tables of the rows, what they were measured with, and what the columns mean."""
    rows = [row for row in rows if row.get("milliseconds") or row["failures"]]
    if not rows:
        return
    here, load, cores = machine(device_of(config)), config.stash[LOAD], os.cpu_count() or 1
    yield f"{here['device']}, {here['threads']} threads, torch {here['torch']}, commit {here['commit']}"
    if load > IDLE * cores:
        yield f"Do not quote these numbers: other work was running (a load of {load:.2f} on {cores} cores)."
    yield from [md.rates_text(row["rates"]) for row in rows if "rates" in row][-1:]  # the best of the run
    for row in rows:
        yield ""
        yield from case_table(row)
    yield ""
    yield from LEGEND
