"""Programs of kernels/: cases by name."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from compiling import Target, build


def cases(source: Path) -> list[str]:
    return re.findall(r"^CASE\((\w+)\)", source.read_text(), flags=re.MULTILINE)


@functools.cache
def program(source: Path, variant: str) -> Path:
    target = Target(source.stem, (source,), variant)
    build([target])
    return target.output


def run_case(source: Path, case: str, variant: str, order: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs ``case`` of a program with its threads in ``order``."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # fibers of a failed launch are dropped as they are
    command = [str(program(source, variant)), case, str(order)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def static_shared_memory(binary: Path) -> dict[str, int]:
    """Bytes of each kernel's `__shared__` variables, as the symbols of their section tell."""
    command = ["objdump", "--syms", "--demangle", str(binary)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes: dict[str, int] = {}
    for size, variable in re.findall(r" O \.noinit\s+([0-9a-f]+)\s+(.*)", table):
        kernel = variable.rpartition("::")[0]
        sizes[kernel] = sizes.get(kernel, 0) + int(size, 16)
    return sizes
