"""Everything that only a GPU can show, in one command; needs no network.

    python -m benchmarks.gpu --out runs/gpu                         all sections
    python -m benchmarks.gpu --out runs/gpu --only build,cuda       some; earlier ones in the folder are kept
    python -m benchmarks.gpu --out runs/gpu --only bench --cases "psp_head or training_step"
    python -m benchmarks.gpu --out runs/gpu --only none --save      copy the results into the repository
    python -m benchmarks.gpu --out runs/dry --device cpu            a dry run: no build, no sanitizer

A section is a list of commands (pytest, compute-sanitizer, the benchmarks), each a process under the section's time
limit. It leaves SECTION.log, the reports of its commands and SECTION.json in the folder; result.json holds them all. A
section that fails stops no other; the exit code is 1 if one did.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_result import assembled, count_junit, find_sanitizer, read_sanitizer, save, summary
from benchmarks.results import RESULTS, ROOT, machine, write_json
from pspnet_fast.report import KERNELS

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
OUT_OF_TIME = (124, 137)  # exit codes of coreutils' timeout
LARGE = "tests/gpu/test_beyond_int32.py"
TOOLS = ("memcheck", "racecheck", "initcheck")
Findings = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What a section runs, and how its reports are read.

    Attributes:
        commands: all are run, whether or not one fails.
        read: text of the log -> findings; "problems" among them make the section fail.
        environment: added to the commands' environment.
        at_once: commands that run at the same time; where nothing is timed, a machine's cores are all used.
    """

    commands: Sequence[Sequence[str]]
    read: Callable[[str], Findings] = lambda log: {"problems": []}
    environment: Mapping[str, str] = field(default_factory=dict)
    at_once: int = 1


def pytest(report: Path, *arguments: str) -> list[str]:
    # A test that takes longer than this prints where it is.
    quiet = ["-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=120"]
    return [sys.executable, "-m", "pytest", *quiet, f"--junitxml={report}", *arguments]


def workers() -> int:
    """Processes that share the GPU where nothing is timed: about one for each core, and what its memory holds."""
    return max(1, min(16, len(os.sched_getaffinity(0)) - 2))


def counted(report: Path, *, least: int = 1) -> Callable[[str], Findings]:
    """Reads pytest's report: as many tests must have passed, and none failed."""

    def read(_: str) -> Findings:
        counts = count_junit(report)
        return {"counts": counts, "problems": [str(counts)] if counts["failed"] or counts["passed"] < least else []}

    return read


# ---- sections --------------------------------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> Section:
    """The extension for this very GPU, from nothing, so that the compiler reports what each kernel needs of it.

    With line information, by which compute-sanitizer names a line; it would make the usual build three times as large.
    """
    tree = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
    architecture = "{}.{}".format(*torch.cuda.get_device_capability()) if options.device == "cuda" else ""

    def read(log: str) -> Findings:
        kernels, spilling = log.count("Compiling entry function"), len(re.findall(r"[1-9]\d* bytes spill stores", log))
        problems = [] if kernels else ["the compiler's report names no kernel"]
        return {"kernels": kernels, "spilling": spilling, "problems": problems}

    return Section(
        [["rm", "-rf", str(tree)], [sys.executable, "setup.py", "build_ext", "--inplace"]],
        read,
        {"TORCH_CUDA_ARCH_LIST": architecture, "CUDAFLAGS": "-Xptxas=-v -lineinfo", "PSPNET_FAST_FORCE_CUDA": "1"},
    )


def tests(options: argparse.Namespace, backend: str) -> Section:
    """Correctness of a back end first: real sizes and all operators. If it cannot run, the section fails."""
    operators = ["tests/ops/test_upsample_argmax.py"] if options.device == "cpu" else ["tests/ops", "tests/nn"]
    report = options.out / f"tests_{backend}.xml"
    parallel = ["-n", str(workers()), "--dist=worksteal"]
    # Inductor would start as many processes again, in each of these.
    environment = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PSPNET_FAST_EXPECT_BACKENDS": backend}
    command = pytest(report, *parallel, f"--ignore={LARGE}", "tests/gpu", *operators, "-k", backend)
    return Section([command], counted(report), environment)


def large(options: argparse.Namespace) -> Section:
    """Maps of more than 2**31 elements, which take most of a GPU's memory."""
    report = options.out / "large.xml"
    return Section([pytest(report, LARGE)], counted(report))


def sanitizer(options: argparse.Namespace) -> Section:
    """compute-sanitizer over every operator at small sizes, on each back end.

    API errors are not reported, as libraries probe for features by failing calls; compilers that Triton starts are not
    checked. Without the caching allocator each tensor is an allocation, whose bounds the tool knows.
    """
    program = find_sanitizer() or "compute-sanitizer"
    flags = ["--report-api-errors", "no", "--print-limit", "20000", "--show-backtrace", "no"]
    flags += ["--target-processes", "application-only"]
    logs = {(tool, name): options.out / f"{tool}_{name}.txt" for name in KERNELS for tool in TOOLS}

    def command(tool: str, backend: str, log: Path) -> list[str]:
        tests = pytest(log.with_suffix(".xml"), "tests/gpu/test_small_sizes.py", "-k", backend)
        return [program, "--tool", tool, "--log-file", str(log), *flags, *tests]

    def read(_: str) -> Findings:
        runs = {" ".join(names): read_sanitizer(log, log.with_suffix(".xml")) for names, log in logs.items()}
        problems = [f"{name}: {reason}" for name, run in runs.items() for reason in run["problems"]]
        return {"program": program, "runs": runs, "problems": problems}

    commands = [command(*names, log) for names, log in logs.items()]
    return Section(commands, read, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, at_once=workers())


def bench(options: argparse.Namespace) -> Section:
    """Operators and network, compared with stock eager and torch.compile."""
    selected = f"(operators or network) and ({options.cases})" if options.cases else "operators or network"
    kept = ["--quick", "--benchmark-max-time=0"] if options.device == "cpu" else [f"--save={options.out}"]
    report = options.out / "bench.xml"
    words = ["benchmarks", f"--device={options.device}", "-k", selected, "--benchmark-quiet", *kept]
    return Section([pytest(report, *words)], counted(report, least=0))  # where all is skipped, nothing failed


def train(options: argparse.Namespace) -> Section:
    """Twenty steps in float64, in which fused and plain losses must agree; then a training of both with mIoU."""
    words = ["--steps=2", "--training-steps=4", "--val-images=2", "data.crop=65", "optim.batch_size=2"]
    if options.device == "cuda":
        words = ["--steps=20", "--training-steps=400", "--amp=bf16", "model.layers=50", "data.crop=257"]
        words += ["optim.batch_size=16", "data.workers=2", "optim.lr=0.02"]
    command = [sys.executable, "-m", "benchmarks.compare_training", f"--save={options.out}", *words]
    return Section([[*command, f"run.device={options.device}"]])


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "build": build,
    **{backend: functools.partial(tests, backend=backend) for backend in (*KERNELS, "cpu")},
    "large": large,
    "sanitizer": sanitizer,
    "bench": bench,
    "train": train,
}
NEED_GPU = ("build", *KERNELS, "large", "sanitizer")


# ---- the command -----------------------------------------------------------------------------------------------------


def run_section(name: str, section: Section, out: Path, limit: float, device: str) -> Findings:
    """Run the commands, read their reports; the content of ``out/NAME.json``."""
    print(f"\n==== {name}", flush=True)
    started, log = time.monotonic(), out / f"{name}.log"
    log.write_text("")

    def run(command: Sequence[str]) -> int:
        left = limit - (time.monotonic() - started)
        return run_command(command, section.environment, left, log) if left > 0 else OUT_OF_TIME[0]

    with ThreadPoolExecutor(section.at_once) as pool:
        codes = list(pool.map(run, section.commands))
    try:
        found = section.read(log.read_text(errors="replace"))
    except (OSError, ValueError) as error:
        found = {"problems": [f"no report: {error}"]}
    if not found["problems"] and any(codes):
        found["problems"] = [f"exit codes {codes}"]
    status = "out of time" if set(codes) & set(OUT_OF_TIME) else "failed" if found["problems"] else "passed"
    seconds = round(time.monotonic() - started, 1)
    result = {"status": status, "seconds": seconds, **found, "machine": machine(device)}
    write_json(out / f"{name}.json", result)
    print(f"==== {name}: {status} in {seconds:.0f} s", flush=True)
    return result


def run_command(command: Sequence[str], environment: Mapping[str, str], limit: float, log: Path) -> int:
    """Run a command under ``timeout``, which also ends its compilers and workers; print and log what it says."""
    print("+", *command, flush=True)
    limited = ["timeout", f"--kill-after={GRACE}", f"{limit:.1f}", *command]
    # pip's cmake and ninja lie next to the interpreter, which need not be on the PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = f"set -o pipefail; {shlex.join(limited)} 2>&1 | tee -a {shlex.quote(str(log))}"
    own = {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": path, **environment}
    return subprocess.run(["bash", "-c", shell], cwd=ROOT, env=own, check=False).returncode


def names(text: str) -> list[str]:
    """Sections from "build,tests"; none from "none".

    Raises:
        argparse.ArgumentTypeError: a name that is no section.
    """
    chosen = [] if text == "none" else [name for name in text.split(",") if name]
    if unknown := set(chosen) - set(SECTIONS):
        known = ", ".join(SECTIONS)
        raise argparse.ArgumentTypeError(f"no section {', '.join(sorted(unknown))}; choose from {known}, or none")
    return [name for name in SECTIONS if name in chosen]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--only", type=names, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}; or none")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--cases", default="", help="of the bench section, as pytest's -k; other rows are kept")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for each section (default %(default)g)")
    parser.add_argument("--save", action="store_true", help="copy the result to benchmarks/results and record it")
    options = parser.parse_args(arguments)
    if options.save and options.device == "cpu":
        parser.error("--save keeps results of a GPU; --device cpu is a dry run")
    of_the_other = NEED_GPU if options.device == "cpu" else ("cpu",)
    options.only = [name for name in options.only if name not in of_the_other]
    options.out = options.out.resolve()
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cuda" and options.only and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu makes a dry run")
    made = [(name, SECTIONS[name](options)) for name in options.only]
    ended = [run_section(name, section, options.out, options.limit, options.device) for name, section in made]
    result = assembled(options.out, list(SECTIONS))
    print(f"\n{summary(result)}\n{write_json(options.out / 'result.json', result)}")
    if options.save:
        print(*save(result, RESULTS), sep="\n")
    return int(any(section["status"] != "passed" for section in ended))


if __name__ == "__main__":
    sys.exit(main())
