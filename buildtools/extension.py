"""Finds torch, drives CMake and Ninja, and turns every failure into a reason instead of a broken install."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
WIDTH = 100  # of the summary
BYTES_PER_JOB = 3 << 30  # a translation unit with torch's headers takes 1.5 to 2.5 GB in nvcc's host pass

# Reads version.py instead of importing torch, which takes seconds.
_PROBE = """
import importlib.util, json, os
spec = importlib.util.find_spec("torch")
answer = None
if spec is not None and spec.origin:
    folder, scope = os.path.dirname(spec.origin), {}
    with open(os.path.join(folder, "version.py")) as file:
        exec(file.read(), scope)
    answer = {"version": str(scope["__version__"]), "folder": folder}
print(json.dumps(answer))
"""


class BuildError(RuntimeError):
    """CMake or a compiler failed; the message is the end of what it said."""


@dataclass(frozen=True)
class TorchInfo:
    """One installed torch: its version and its package folder."""

    version: str
    folder: str


@dataclass
class BuildResult:
    """What one build gave: written to ``_build_info.json`` and shown in the summary."""

    torch: str | None
    built: list[str] = field(default_factory=list)  # of "cpu", "cuda"
    skipped: dict[str, str] = field(default_factory=dict)  # the others, with the reason
    compiler: str | None = None
    nvcc: str | None = None
    cuda_architectures: list[str] = field(default_factory=list)
    digests: dict[str, str | None] = field(default_factory=dict)  # of the sources that were compiled

    def write(self, path: Path) -> None:
        """Write as JSON, replacing an older file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(temporary, path)


def build_extension(torch: TorchInfo | None, output: Path, build_root: Path) -> BuildResult:
    """Build the extension to the file ``output``.

    Args:
        torch: what to link against; None builds nothing.
        output: the path of the extension module.
        build_root: where CMake keeps its trees, one per interpreter and torch, so that none is built from the objects
            of another.

    Raises:
        BuildError: only where ``PSPNET_FAST_FORCE_CUDA=1`` requires what cannot be built.
    """
    forced = os.environ.get("PSPNET_FAST_FORCE_CUDA") == "1"
    result = BuildResult(torch.version if torch else None)
    reason = _missing_tool(torch)
    if torch is None or reason is not None:
        if forced:
            raise BuildError(f"PSPNET_FAST_FORCE_CUDA=1, but {reason}")
        result.skipped = {"cpu": str(reason), "cuda": str(reason)}
        return result

    tree = build_root / f"{sys.implementation.cache_tag}-torch-{torch.version}"
    modes = ["ON"] if forced else [os.environ.get("PSPNET_FAST_CUDA", "AUTO"), "OFF"]
    digests = csrc_digests()  # before compiling: an edit meanwhile must not count as compiled
    failure = ""
    for mode in modes:
        try:
            _configure_and_build(torch, tree, mode)
        except BuildError as error:
            if forced:
                raise
            failure = failure or str(error)
            continue
        record = json.loads((tree / "build_info.json").read_text())
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / record["file"], output)
        result.built, result.compiler, result.digests = ["cpu"], record["compiler"], digests
        if record["cuda_problem"]:
            result.skipped["cuda"] = f"the CUDA build failed: {failure}" if failure else record["cuda_problem"]
        else:
            result.built.append("cuda")
            result.nvcc, result.cuda_architectures = record["nvcc"], record["cuda_architectures"].split(";")
        return result
    result.skipped = {"cpu": failure, "cuda": failure}
    return result


def find_torch() -> TorchInfo | None:
    """The torch to link against, or None where there is none.

    An isolated build hides the environment's packages behind PYTHONPATH, but runs the environment's interpreter: the
    same interpreter without those variables sees what the user will import. A torch that was put into the build
    environment on purpose is taken only if the environment itself has none.
    """
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")}
    return _probe(clean) or _probe(dict(os.environ))


def _probe(environment: dict[str, str]) -> TorchInfo | None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, cwd=sys.prefix, capture_output=True, text=True, check=False
    )
    answer = json.loads(done.stdout) if done.returncode == 0 else None
    return TorchInfo(**answer) if answer else None


def framed(result: BuildResult) -> str:
    """What was built, and why the rest was not, in a frame: pip shows it with -v, at the end of the build."""
    lines = [f"pspnet_fast, for torch {result.torch or '(none found)'}"]
    for part, title in (("cpu", "CPU kernels (C++) "), ("cuda", "CUDA kernels      ")):
        if part in result.built:
            detail = result.compiler if part == "cpu" else f"nvcc {result.nvcc}, {' '.join(result.cuda_architectures)}"
            lines.append(f"{title} built: {detail}")
        else:
            lines.append(f"{title} NOT built: {result.skipped[part]}")
    lines.append("Triton kernels     need no build; the reference in PyTorch operators is always there")
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, WIDTH - 4, subsequent_indent=" " * 19)]
    edge = "+" + "-" * (WIDTH - 2) + "+"
    return "\n".join([edge, *(f"| {piece:<{WIDTH - 4}} |" for piece in wrapped), edge])


def csrc_digests() -> dict[str, str | None]:
    """Digests of all of csrc, and of what the CUDA kernels are compiled from: csrc without csrc/cpu."""
    # By path: importing pspnet_fast would import torch, which an isolated build need not have.
    folder_digest = runpy.run_path(str(SOURCE / "pspnet_fast" / "digest.py"))["folder_digest"]
    csrc = SOURCE / "csrc"
    return {"csrc": folder_digest(csrc), "cuda": folder_digest(csrc, exclude=("cpu",))}


def _missing_tool(torch: TorchInfo | None) -> str | None:
    if torch is None:
        return "the environment has no torch to link against; install torch, then this package again"
    found = {"cmake": shutil.which("cmake"), "ninja": shutil.which("ninja"), "pybind11": find_spec("pybind11")}
    missing = next((name for name, place in found.items() if place is None), None)
    return missing and f"{missing} was not found; run `pip install cmake ninja pybind11`"


def _configure_and_build(torch: TorchInfo, tree: Path, cuda: str) -> None:
    import pybind11

    _run(
        "cmake", "-S", str(SOURCE), "-B", str(tree), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # an isolated build's own is gone by the next build
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPSPNET_FAST_TORCH={torch.folder}",
        f"-DPSPNET_FAST_PYBIND11={pybind11.get_include()}",
        f"-DPSPNET_FAST_CUDA={cuda}",
    )  # fmt: skip
    _run("cmake", "--build", str(tree), "--target", "_C", "--parallel", str(job_count()))


def job_count() -> int:
    """Compilers to run at once: MAX_JOBS, else as many as there are cores and free memory for."""
    wanted = os.environ.get("MAX_JOBS")
    if wanted is not None:
        if not wanted.isdigit() or int(wanted) < 1:
            raise BuildError(f"MAX_JOBS must be a positive integer, not {wanted!r}")
        return int(wanted)
    cores = os.cpu_count() or 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return cores
    return max(1, min(cores, free // BYTES_PER_JOB))


def _run(*command: str) -> None:
    lines: list[str] = []
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:  # as it comes: a build takes minutes
            print(line, end="", file=sys.stderr, flush=True)
            lines += [line.strip()] if line.strip() else []
    if process.returncode != 0:
        told = [line for line in lines if "error" in line.lower() or "No CMAKE_CXX_COMPILER" in line] or lines
        raise BuildError(" / ".join(told[:3])[:600] or f"{command[0]} exited with {process.returncode}")
