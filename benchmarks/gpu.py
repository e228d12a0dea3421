"""Everything that only a GPU can show, in one command; needs no network.

    python -m benchmarks.gpu --out runs/gpu                         all sections
    python -m benchmarks.gpu --out runs/gpu --only build,tests      some; earlier ones in the folder are kept
    python -m benchmarks.gpu --out runs/gpu --only bench --cases "psp_head or training_step"
    python -m benchmarks.gpu --out runs/gpu --only none --save      copy the results into the repository
    python -m benchmarks.gpu --out runs/dry --device cpu            a dry run: no build, no sanitizer

A section is a list of commands (pytest, compute-sanitizer, the benchmarks), each a process under the section's time
limit. It leaves SECTION.log, the reports of its commands and SECTION.json in the folder; result.json holds them all. A
section that fails stops no other; the exit code is 1 if one did.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_reports import count_junit, read_sanitizer
from benchmarks.gpu_result import assembled, save, summary
from benchmarks.results import RESULTS, ROOT, machine, write_json

LIMIT = 540.0  # seconds of a section
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
OUT_OF_TIME = (124, 137)  # exit codes of coreutils' timeout
TOOLS, BACKENDS = ("memcheck", "racecheck", "initcheck"), ("cuda", "triton")
Findings = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What a section runs, and how its reports are read.

    Attributes:
        commands: run one after the other, whether or not one fails.
        read: (output folder, text of the log) -> findings; "problems" among them make the section fail.
        environment: added to the commands' environment.
    """

    commands: Sequence[Sequence[str]]
    read: Callable[[Path, str], Findings]
    environment: Mapping[str, str] = field(default_factory=dict)


def pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


# ---- sections --------------------------------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> Section:
    """The extension for this very GPU, from nothing, so that the compiler reports what each kernel needs of it."""
    tree = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
    architecture = "{}.{}".format(*torch.cuda.get_device_capability()) if options.device == "cuda" else ""

    def read(_: Path, log: str) -> Findings:
        kernels, spilling = log.count("Compiling entry function"), len(re.findall(r"[1-9]\d* bytes spill stores", log))
        problems = [] if kernels else ["the compiler's report names no kernel"]
        return {"kernels": kernels, "spilling": spilling, "problems": problems}

    return Section(
        [["rm", "-rf", str(tree)], [sys.executable, "setup.py", "build_ext", "--inplace"]],
        read,
        {"TORCH_CUDA_ARCH_LIST": architecture, "CUDAFLAGS": "-Xptxas=-v", "PSPNET_FAST_FORCE_CUDA": "1"},
    )


def tests(options: argparse.Namespace) -> Section:
    """Correctness first: real sizes and all operators on each back end, then everything else.

    A back end that cannot run is a failure, as all of the machine's are expected.
    """
    gpu = options.device == "cuda"
    small = options.quick or not gpu
    paths = ["tests/gpu", *(["tests/ops/test_upsample_argmax.py"] if small else ["tests/ops", "tests/nn"])]
    backends = ("cpu", *BACKENDS) if gpu else ("cpu",)
    chosen = {name: name for name in backends} | {"other": " and ".join(f"not {name}" for name in backends)}

    def report(name: str) -> Path:
        return Path(options.out) / f"tests_{name}.xml"

    def read(_: Path, __: str) -> Findings:
        counts = {name: count_junit(report(name)) for name in chosen}
        problems = [f"{name}: {own}" for name, own in counts.items() if own["failed"] or not own["passed"]]
        return {"backends": counts, "problems": problems}

    commands = [pytest(*paths, "-k", words, f"--junitxml={report(name)}") for name, words in chosen.items()]
    return Section(commands, read, {"PSPNET_FAST_EXPECT_BACKENDS": ",".join(backends)})


def sanitizer(options: argparse.Namespace) -> Section:
    """compute-sanitizer over every operator at small sizes, on each back end.

    API errors are not reported, as libraries probe for features by failing calls; compilers that Triton starts are not
    checked. Without the caching allocator each tensor is an allocation, whose bounds the tool knows.
    """
    program = find_sanitizer() or "compute-sanitizer"
    flags = ["--report-api-errors", "no", "--print-limit", "50", "--target-processes", "application-only"]

    def log_of(tool: str, backend: str) -> Path:
        return Path(options.out) / f"{tool}_{backend}.txt"

    def command(tool: str, backend: str) -> list[str]:
        report = str(log_of(tool, backend).with_suffix(".xml"))
        tests = pytest("tests/gpu/test_small_sizes.py", "-k", backend, f"--junitxml={report}")
        return [program, "--tool", tool, "--log-file", str(log_of(tool, backend)), *flags, *tests]

    def read(out: Path, _: str) -> Findings:
        runs = {
            f"{tool} {backend}": read_sanitizer(log_of(tool, backend), log_of(tool, backend).with_suffix(".xml"))
            for backend in BACKENDS
            for tool in TOOLS
        }
        problems = [f"{name}: {reason}" for name, run in runs.items() for reason in run["problems"]]
        return {"program": program, "runs": runs, "problems": problems}

    commands = [command(tool, backend) for backend in BACKENDS for tool in TOOLS]
    return Section(commands, read, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def bench(options: argparse.Namespace) -> Section:
    """Operators and network, compared with stock eager and torch.compile."""
    small = options.quick or options.device == "cpu"
    selected = f"(operators or network) and ({options.cases})" if options.cases else "operators or network"
    kept = ["--quick", "--benchmark-max-time=0"] if small else [f"--save={options.out}"]
    command = pytest("benchmarks", f"--device={options.device}", "-k", selected, "--benchmark-quiet", *kept)
    report = options.out / "bench.xml"

    def read(_: Path, __: str) -> Findings:
        counts = count_junit(report)
        return {"counts": counts, "problems": [f"{counts['failed']} peers failed"] if counts["failed"] else []}

    return Section([[*command, f"--junitxml={report}"]], read)


def train(options: argparse.Namespace) -> Section:
    """Twenty steps in float64, in which fused and plain losses must agree; then a training of both with mIoU."""
    small = options.quick or options.device == "cpu"
    data = ["--root", str(options.camvid.resolve())] if options.camvid else []
    words = ["--steps=2", "--training-steps=4", "--val-images=2", "data.crop=65", "optim.batch_size=2"]
    if not small:
        words = ["--steps=20", "--training-steps=400", "--amp=bf16", "model.layers=50", "data.crop=257"]
        words += ["optim.batch_size=16", "data.workers=2", "optim.lr=0.02"]
    command = [sys.executable, "-m", "benchmarks.compare_training", *data, f"--save={options.out}", *words]
    return Section([[*command, f"run.device={options.device}"]], lambda out, log: {"problems": []})


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
    "train": train,
}
NEED_GPU = ("build", "sanitizer")


def find_sanitizer() -> str | None:
    """compute-sanitizer of the toolkit, the PATH, the usual folder, or NVIDIA's wheels."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    packed = (str(file) for file in sorted(wheels.glob("**/compute-sanitizer")) if os.access(file, os.X_OK))
    return shutil.which("compute-sanitizer", path=path) or next(packed, None)


# ---- running them ----------------------------------------------------------------------------------------------------


def run_section(name: str, section: Section, out: Path, limit: float, device: str) -> Findings:
    """Run the commands, read their reports; the content of ``out/NAME.json``."""
    print(f"\n==== {name}", flush=True)
    started, log = time.monotonic(), out / f"{name}.log"
    log.write_text("")
    codes = []
    for command in section.commands:
        left = limit - (time.monotonic() - started)
        codes.append(run_command(command, section.environment, left, log) if left > 0 else OUT_OF_TIME[0])
    try:
        found = section.read(out, log.read_text(errors="replace"))
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
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shlex.join(limited)} 2>&1 | tee -a {shlex.quote(str(log))}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PATH": path, **environment},
        check=False,
    ).returncode


# ---- the command -----------------------------------------------------------------------------------------------------


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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--only", type=names, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}; or none")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--camvid", type=Path, help="a CamVid folder to train on, instead of drawn scenes")
    parser.add_argument("--cases", default="", help="of the bench section, as pytest's -k; other rows are kept")
    parser.add_argument("--quick", action="store_true", help="small shapes and few tests")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each section (default %(default)g)")
    parser.add_argument("--save", action="store_true", help="copy the result to benchmarks/results and record it")
    options = parser.parse_args(arguments)
    if options.save and (options.device == "cpu" or options.quick):
        parser.error("--save keeps whole results of a GPU; --device cpu and --quick are dry runs")
    if options.device == "cpu":
        options.only = [name for name in options.only if name not in NEED_GPU]
    options.out = options.out.resolve()
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cuda" and options.only and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu makes a dry run")
    ended = {
        name: run_section(name, SECTIONS[name](options), options.out, options.limit, options.device)
        for name in options.only
    }
    result = assembled(options.out, list(SECTIONS))
    print(f"\n{summary(result)}\n{write_json(options.out / 'result.json', result)}")
    if options.save:
        for path in save(json.loads((options.out / "result.json").read_text()), RESULTS):
            print(path)
    return int(any(section["status"] != "passed" for section in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
