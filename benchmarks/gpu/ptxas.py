"""What ``nvcc -Xptxas -v`` says of each kernel: registers, spills, shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

_COMPILING = re.compile(r"ptxas info\s*: Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def kernel_resources(text: str) -> list[dict[str, Any]]:
    """One entry a kernel and architecture, in the order of the report: name, architecture, registers, shared memory.

    ``shared`` is static shared memory in bytes; what a launch asks for on top is not known to the compiler.
    """
    kernels: list[dict[str, Any]] = []
    for line in text.splitlines():
        if found := _COMPILING.search(line):
            kernels.append({"name": found[1], "architecture": found[2], "registers": None, "shared": 0,
                            "stack": 0, "spill_stores": 0, "spill_loads": 0})  # fmt: skip
        elif kernels and (found := _SPILLS.search(line)) and kernels[-1]["registers"] is None:
            kernels[-1] |= dict(zip(("stack", "spill_stores", "spill_loads"), map(int, found.groups()), strict=True))
        elif kernels and (found := _USED.search(line)) and kernels[-1]["registers"] is None:
            shared = _SHARED.search(line)
            kernels[-1] |= {"registers": int(found[1]), "shared": int(shared[1]) if shared else 0}
    for kernel, name in zip(kernels, demangled([kernel["name"] for kernel in kernels]), strict=True):
        kernel["name"] = name
    return kernels


def demangled(names: list[str]) -> list[str]:
    """C++ names without namespaces' noise and arguments, where a demangler is at hand; else as they are."""
    program = shutil.which("cu++filt") or shutil.which("c++filt")
    if program is None or not names:
        return names
    done = subprocess.run([program], input="\n".join(names), capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return [_short(line) for line in lines] if done.returncode == 0 and len(lines) == len(names) else names


def _short(name: str) -> str:
    """``void a::(anonymous namespace)::kernel<float, 4>(Arguments)`` as ``kernel<float, 4>``."""
    name = name.replace("(anonymous namespace)::", "").replace("<unnamed>::", "")
    found = re.match(r"(?:void )?(?:\w+::)*(\w+(?:<.*>)?)\(", name)
    return found[1] if found else name
