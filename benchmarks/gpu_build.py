"""Builds the extension for the machine's GPU into the source tree, from nothing, so that the compiler reports all.

    python -m benchmarks.gpu_build

The sections that follow in ``python -m benchmarks.gpu`` run what was built. ``-Xptxas=-v`` has the compiler print the
registers, spills and shared memory of every kernel.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

from benchmarks.results import ROOT
from buildtools.cmake import build_extension
from buildtools.torch_info import find_torch


def main() -> None:
    os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    # pip's cmake and ninja lie next to the interpreter, which need not be on the PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"CUDAFLAGS": "-Xptxas=-v", "PSPNET_FAST_FORCE_CUDA": "1"}
    package = ROOT / "pspnet_fast"
    for stale in package.glob("_C.*.so"):
        stale.unlink()  # not overwritten: this process has it loaded
    with tempfile.TemporaryDirectory() as tree:
        module = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        result = build_extension(find_torch(), module, Path(tree))
    result.write(package / "_build_info.json")
    if missing := {"cpu", "cuda"} - set(result.built):
        sys.exit(f"not built: {', '.join(f'{name}: {result.skipped.get(name)}' for name in sorted(missing))}")


if __name__ == "__main__":
    main()
