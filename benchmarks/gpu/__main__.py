"""Everything that only a GPU can show, in one command; needs no network.

    python -m benchmarks.gpu --out runs/gpu                              all sections
    python -m benchmarks.gpu --out runs/gpu --only build,tests           some; earlier ones in the folder are kept
    python -m benchmarks.gpu --out runs/gpu --only bench --cases psp_head,training_step
    python -m benchmarks.gpu --out runs/gpu --only none --save           put the results into the repository
    python -m benchmarks.gpu --out runs/dry --device cpu                 every section's logic at small shapes

Each section runs in a process of its own with its own time limit, prints as it goes, and leaves SECTION.log and
SECTION.json in the folder when it ends; result.json holds them all. A section that fails stops no other; the exit code
is 1 if one did.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.result import assembled, save, summary
from benchmarks.gpu.suite import LIMIT, SECTIONS, Section, run_section
from benchmarks.measure import RESULTS, write_json


def names(text: str) -> list[str]:
    """Sections from "build,tests"; none from "none".

    Raises:
        argparse.ArgumentTypeError: a name that is no section.
    """
    chosen = [] if text == "none" else [name for name in text.split(",") if name]
    if unknown := set(chosen) - set(SECTIONS):
        raise argparse.ArgumentTypeError(
            f"no section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}, or none"
        )
    return [name for name in SECTIONS if name in chosen]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--only", type=names, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}; or none")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--camvid", type=Path, help="a CamVid folder to train on, instead of drawn scenes")
    parser.add_argument("--cases", default="", help="operators of the bench section, by commas; others' rows are kept")
    parser.add_argument("--quick", action="store_true", help="small shapes and few tests")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each section (default %(default)g)")
    parser.add_argument("--save", action="store_true", help="copy the result to benchmarks/results and record it")
    options = parser.parse_args(arguments)
    if options.save and options.device == "cpu":
        parser.error("--save keeps results of a GPU; --device cpu is a dry run")
    return options


def section_of(name: str, options: argparse.Namespace) -> Section:
    """The process of a section."""
    command = [sys.executable, "-m", "benchmarks.gpu.section", name, "--out", str(options.out.resolve())]
    command += ["--device", options.device, "--limit", str(options.limit), "--cases", options.cases]
    command += ["--camvid", str(options.camvid.resolve())] if options.camvid else []
    command += ["--quick"] if options.quick else []
    # A dry run must not find the GPU of the machine that it happens to run on.
    environment = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    return Section(name, command, options.limit, environment)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ended = {name: run_section(section_of(name, options), options.out) for name in options.only}
    result = assembled(options.out, SECTIONS)
    print(f"\n{summary(result)}\n{write_json(options.out / 'result.json', result)}")
    if options.save:
        for path in save(result, RESULTS):
            print(path)
    return int(any(section["status"] != "passed" for section in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
