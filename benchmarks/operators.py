"""Every operator against stock PyTorch and torch.compile, with the floor, on this machine.

    python -m benchmarks.operators                                       the tables (about half an hour on two cores)
    python -m benchmarks.operators --only dual_cross_entropy --rounds 5
    python -m benchmarks.operators --quick                               small shapes, in some minutes
    python -m benchmarks.operators --save                                also into benchmarks/results/

On a CPU each measurement runs in a process of its own: times in one, peak memory in one for each peer, and the
cross-entropies' times once more with page faults taken out (see README.md beside this file).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.ceilings import measure_ceilings
from benchmarks.measure import in_fresh_process, save
from benchmarks.provenance import ROOT, device_name
from benchmarks.rows import Row, all_cases, measure_all, peak_of
from benchmarks.table import ceilings_text, row_text

# The C library then keeps what is freed and never maps anew: pages are faulted in once, and not in every call.
NO_PAGE_FAULTS = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
    ":glibc.malloc.mmap_max=0"
}
MODULE = "benchmarks.operators"
SECONDS = 2.0  # of each variant at least: what takes milliseconds gets as many rounds as even out a busy moment


def worker(options: argparse.Namespace) -> None:
    """Measure in this process; a line of JSON for the ceilings, then one for each row."""
    ceilings = measure_ceilings(options.device, quick=options.quick)
    print(json.dumps(ceilings.as_dict()), flush=True)
    cases = all_cases(options.device, quick=options.quick, only=options.only)
    if options.worker == "no page faults":
        cases = [case for case in cases if case.page_faults]
    seconds = 0.0 if options.quick or options.rounds else SECONDS
    for row in measure_all(cases, ceilings, options.rounds, seconds):
        print(json.dumps(row), flush=True)


def from_worker(options: argparse.Namespace, allocator: str) -> Iterator[dict[str, Any]]:
    """What a worker process prints, line by line.

    Raises:
        subprocess.CalledProcessError: it ended with an error.
    """
    command = [sys.executable, "-m", MODULE, "--worker", allocator, *_passed_on(options)]
    environment = {**os.environ, **(NO_PAGE_FAULTS if allocator == "no page faults" else {})}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def _passed_on(options: argparse.Namespace) -> list[str]:
    words = ["--device", options.device, *(["--quick"] if options.quick else [])]
    words += ["--only", ",".join(options.only)] if options.only else []
    return [*words, *(["--rounds", str(options.rounds)] if options.rounds else [])]


def measure(options: argparse.Namespace) -> list[Row]:
    """All rows, printed as they come."""
    rows: list[Row] = []
    allocators = ["default"] + ["no page faults"] * (options.device == "cpu")
    for allocator in allocators:
        lines = from_worker(options, allocator)
        ceilings = next(lines)
        if allocator == "default":
            print(f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(ceilings_text(ceilings), flush=True)
        for row in lines:
            row |= {"allocator": allocator, "ceilings": ceilings}
            if options.device == "cpu" and allocator == "default" and not options.no_memory:
                row["peak_bytes"] = peaks(row, options)
            print(row_text(row), flush=True)
            rows.append(row)
    return rows


def peaks(row: Row, options: argparse.Namespace) -> dict[str, int]:
    """Peak memory of every peer that was timed, each in a process of its own."""
    flags = ["--device", options.device, *(["--quick"] if options.quick else [])]
    peers = [peer for peer in row.get("difference", {}) if peer in row["milliseconds"]]
    return {peer: in_fresh_process(MODULE, "--peak", row["case"], "--peer", peer, *flags) for peer in peers}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", type=lambda text: [name for name in text.split(",") if name], default=[], help="operators, by commas"
    )
    parser.add_argument("--rounds", type=int, help="instead of 9 or more (5 of a network); more on a GPU")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it work?")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/operators_{cpu,gpu}.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("--worker", "--peak", "--peer"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        all_cases(options.device, quick=True, only=options.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    return options


def main() -> None:
    options = parse()
    if options.peak:
        print(json.dumps(peak_of(options.peak, options.peer, options.device, quick=options.quick)))
        return
    if options.worker:
        worker(options)
        return

    rows = measure(options)
    if options.save:
        name = "operators_gpu" if options.device == "cuda" else "operators_cpu"
        print(save("_".join([name, *options.only, *["quick"] * options.quick]), rows))
    if failed := [row["case"] for row in rows if row["failures"]]:
        sys.exit(f"wrong results or errors in {', '.join(failed)}")


if __name__ == "__main__":
    main()
