"""What nvcc made of a kernel: registers, spills, and how many loads of global memory are under way in its loops.

A thread that uses each load before it issues the next waits for memory once a load. How many it issues before the first
of them is used is what keeps a memory system busy, and it stands in the machine code: no GPU is needed to count it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from compiling import CUDA

FUNCTION = re.compile(r"^\s*Function : (\S+)")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
BRANCH = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")
WORDS = {"64": 2, "128": 4}  # registers that a load fills, by its suffix


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions, its loads of global memory, and the most that are under way."""

    instructions: int
    loads: int
    under_way: int


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int
    spilled: int  # bytes
    loops: tuple[Loop, ...]  # that load from global memory

    @property
    def under_way(self) -> int:
        """Of the loop that has most: batches come with loops for what is left over."""
        return max((loop.under_way for loop in self.loops), default=0)


def missing_tool() -> str | None:
    """Why no machine code can be made here, if so."""
    absent = [tool for tool in ("nvcc", "cuobjdump") if _tool(tool) is None]
    return f"not found: {', '.join(absent)}" if absent else None


def compile_kernels(source: Path, architecture: str, folder: Path) -> list[Kernel]:
    """The kernels of a .cu file as nvcc compiles them for ``architecture``, such as "sm_90"."""
    cubin = folder / f"{source.stem}.{architecture}.cubin"
    options = ["-std=c++17", "-Wno-deprecated-gpu-targets", f"-arch={architecture}", "-cubin", f"-I{CUDA}"]
    _run("nvcc", *options, str(source), "-o", str(cubin))
    usage = _run("cuobjdump", "-res-usage", str(cubin))
    spent = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+)", usage)
    loops = loops_of(_run("cuobjdump", "-sass", str(cubin)))
    names = _run("c++filt", *(name for name, *_ in spent)).splitlines()
    return sorted(
        (
            Kernel(_short(readable), int(registers), int(stack), loops[name])
            for readable, (name, registers, stack) in zip(names, spent, strict=True)
        ),
        key=lambda kernel: kernel.name,
    )


def loops_of(sass: str) -> dict[str, tuple[Loop, ...]]:
    """By function, the innermost loops that load from global memory."""
    functions: dict[str, list[tuple[int, str]]] = {}
    for line in sass.splitlines():
        if found := FUNCTION.match(line):
            functions[found[1]] = code = []
        elif found := INSTRUCTION.match(line):
            code.append((int(found[1], 16), found[2]))
    return {name: tuple(_loops(code)) for name, code in functions.items()}


def _loops(code: list[tuple[int, str]]) -> list[Loop]:
    place = {address: i for i, (address, _) in enumerate(code)}
    spans = []
    for i, (address, text) in enumerate(code):
        branch = BRANCH.search(text)
        if branch and int(branch[1], 16) < address:  # a branch to itself ends a kernel
            spans.append((place[int(branch[1], 16)], i))
    inner = [(a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]
    counted = [_count([text for _, text in code[a : b + 1]]) for a, b in inner]
    return [loop for loop in counted if loop.loads]


def _count(body: list[str]) -> Loop:
    """Loads in the order of issue; one whose register, or what is made of it, is read ends what was under way."""
    loads, most, now = 0, 0, 0
    pending: set[int] = set()
    for text in body:
        plain = re.sub(r"^@!?U?P\w+\s+", "", text)
        registers = [int(number) for number in re.findall(r"\bR(\d+)", plain)]
        operation = plain.split()[0]
        is_load = operation.startswith("LDG")
        if set(registers[1:] if is_load else registers) & pending:
            now, pending = 0, set()
        if is_load:
            loads, now = loads + 1, now + 1
            width = WORDS.get(operation.rpartition(".")[2], 1)
            pending |= set(range(registers[0], registers[0] + width))
            most = max(most, now)
    return Loop(len(body), loads, most)


def _short(name: str) -> str:
    """A kernel's name and template arguments."""
    name = name.removeprefix("void ").split("(pspnet_fast::cuda::PoolTables")[0].split("::")[-1]
    return re.sub(r"\(\w+\)|__nv_|\(anonymous namespace\)", "", name)


def _tool(name: str) -> str | None:
    found = shutil.which(name)
    if found is None and (nvcc := shutil.which("nvcc")):
        found = shutil.which(name, path=str(Path(nvcc).resolve().parent))
    if found is None and name == "cuobjdump":
        try:
            import triton
        except ImportError:
            return None
        found = shutil.which(name, path=str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    return found


def _run(tool: str, *arguments: str) -> str:
    command = [_tool(tool) or tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
