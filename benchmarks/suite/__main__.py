"""Measures the peers of one case in this process and prints its row as JSON: for a process with another allocator."""

from __future__ import annotations

import argparse
import json

from benchmarks.ceilings import Ceilings
from benchmarks.rows import measured
from benchmarks.suite.cases import case_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--peers", required=True, type=lambda text: text.split(","))
    parser.add_argument("--rounds", required=True, type=int)
    parser.add_argument("--seconds", required=True, type=float)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    unknown = Ceilings(copy=1.0, read=1.0, float32=1.0, bfloat16=1.0)  # the share of the floor is told by the caller
    row, _ = measured(
        case_of(options.case, "cpu", quick=options.quick),
        unknown,
        options.rounds,
        seconds=options.seconds,
        peers=options.peers,
    )
    print(json.dumps(row))


if __name__ == "__main__":
    main()
