"""Section build: the extension for this very GPU, how long that takes, and what each kernel needs of it.

On a GPU the extension replaces the one in the source tree, which is what the other sections then run. A dry run builds
into a temporary folder and touches nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TextIO

import torch

from benchmarks.gpu.ptxas import kernel_resources
from benchmarks.gpu.section import Findings
from benchmarks.provenance import ROOT
from buildtools.cmake import build_extension
from buildtools.torch_info import find_torch

DRY_RUN_ARCHITECTURE = "9.0"


class Tee(io.StringIO):
    """Keeps what is written, and passes it on."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.stream.flush()


def run(findings: Findings) -> None:
    """Build, time it, and read the compiler's report."""
    gpu = findings.options.device == "cuda"
    architecture = "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else DRY_RUN_ARCHITECTURE
    os.environ["TORCH_CUDA_ARCH_LIST"] = architecture
    # pip's cmake and ninja lie beside the interpreter, which need not be on the PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["CUDAFLAGS"] = "-Xptxas=-v"
    if gpu:
        os.environ["PSPNET_FAST_FORCE_CUDA"] = "1"
    elif findings.options.quick:
        os.environ["PSPNET_FAST_CUDA"] = "OFF"

    said, started = Tee(sys.stderr), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stderr(said):
        package = ROOT / "pspnet_fast" if gpu else Path(temporary) / "pspnet_fast"
        module = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        for stale in package.glob("_C.*.so"):
            stale.unlink()  # not overwritten: this process may have it loaded
        # A new tree: all is compiled, and so the report is complete and the time is that of an installation.
        result = build_extension(find_torch(), module, Path(temporary) / "tree")
        result.write(package / "_build_info.json")
        size = module.stat().st_size if module.is_file() else 0
    seconds = round(time.monotonic() - started, 1)

    kernels = kernel_resources(said.getvalue())
    spilling = [kernel["name"] for kernel in kernels if kernel["spill_stores"] or kernel["spill_loads"]]
    findings.add(
        architecture=architecture,
        compile_seconds=seconds,
        built=result.built,
        skipped=result.skipped,
        compiler=result.compiler,
        bytes=size,
        kernels=kernels,
        spilling=spilling,
    )
    parts = " and ".join(result.built) or "nothing"
    print(f"built {parts} in {seconds:.0f} s; {len(kernels)} kernels, {len(spilling)} spill", flush=True)
    for part in ("cpu", "cuda") if gpu else ("cpu",):
        if part not in result.built:
            findings.problem(f"{part} was not built: {result.skipped.get(part)}")
    if gpu and not kernels:
        findings.problem("the compiler's resource report names no kernel")
