"""What nvcc made of a kernel: registers, spills, and how many loads of global memory are under way in its loops.

A thread that uses each load before it issues the next waits for memory once a load. How many it issues before the first
of them is used is what keeps a memory system busy, and it stands in the machine code: no GPU is needed to count it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from compiling import BUILD, CUDA, ROOT

FUNCTION = re.compile(r"^\s*Function : (\S+)")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
BRANCH = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes of an access, by its suffix; else a word
REGISTERS = 65536  # of a multiprocessor
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10}
RESERVED = 1 << 10  # of it, for each block, by the driver; where a kernel has shared memory, sm_90's code states it too


@dataclass(frozen=True)
class Loop:
    """What it has outside of loops in it. Loads and stores are those of global memory."""

    innermost: bool
    instructions: int
    loads: int = 0
    under_way: int = 0  # the most of them
    loaded: int = 0  # bytes of a lane
    stored: int = 0
    exponentials: int = 0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int
    spilled: int  # bytes
    shared: int  # bytes, static
    all_loops: tuple[Loop, ...]

    @property
    def loops(self) -> list[Loop]:
        """Those that load from global memory."""
        return [loop for loop in self.all_loops if loop.loads]

    @property
    def under_way(self) -> int:
        """Of the loop that has most: batches come with loops for what is left over."""
        return max((loop.under_way for loop in self.loops), default=0)

    @property
    def longest(self) -> int:
        """Instructions of its longest innermost loop."""
        return max((loop.instructions for loop in self.all_loops if loop.innermost), default=0)

    def warps(self, threads: int, dynamic_shared: int, architecture: str) -> int:
        """How many a multiprocessor has at once, of at most 64, in blocks of so many threads."""
        of_block = -(-threads // 32)
        by_registers = REGISTERS // (-(-self.registers * 32 // 256) * 256) // 4 * 4 // of_block
        by_memory = SHARED[architecture] // (self.shared + dynamic_shared + RESERVED)
        return min(by_registers, by_memory, 32, 64 // of_block) * of_block


def missing_tool() -> str | None:
    """Why no machine code can be made here, if so."""
    absent = [tool for tool in ("nvcc", "cuobjdump") if _tool(tool) is None]
    return f"not found: {', '.join(absent)}" if absent else None


def nvcc_version() -> str:
    if missing_tool():
        return "(not found)"
    found = re.search(r"release (\S+),", _run("nvcc", "--version"))
    return found[1] if found else "of no known version"


@functools.cache
def compile_kernels(source: Path, architecture: str) -> list[Kernel]:
    """The kernels of a .cu file as nvcc compiles them for ``architecture``, such as "sm_90"."""
    cubin = _cubin(source, architecture)
    usage = _run("cuobjdump", "-res-usage", str(cubin))
    spent = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    loops = loops_of(_run("cuobjdump", "-sass", str(cubin)))
    names = _run("c++filt", *(name for name, *_ in spent)).splitlines()
    stated = 0 if architecture == "sm_80" else RESERVED
    kernels = (
        Kernel(short_name(readable), int(registers), int(stack), max(int(shared) - stated, 0), loops[name])
        for readable, (name, registers, stack, shared) in zip(names, spent, strict=True)
    )
    return sorted(kernels, key=lambda kernel: kernel.name)


def _cubin(source: Path, architecture: str) -> Path:
    """Compiled anew where a file that it is made of has changed, unless it is in the extension's build."""
    folder = BUILD / "sass" / architecture
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{source.parent.name}-{source.stem}.cubin"
    made_of = cubin.with_suffix(".d")
    if cubin.exists():
        inputs = made_of.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        if all(os.path.exists(path) and os.path.getmtime(path) < cubin.stat().st_mtime for path in inputs):
            return cubin
    new = cubin.with_suffix(f".{os.getpid()}")
    if source.parent == CUDA and _extract(source, architecture, new):
        return new.replace(cubin.with_suffix(".built"))  # without a list of what it is made of
    options = ["-std=c++17", "-Wno-deprecated-gpu-targets", f"-arch={architecture}", "-cubin", f"-I{CUDA}"]
    _run("nvcc", *options, "-MD", "-MF", str(made_of), str(source), "-o", str(new))
    return new.replace(cubin)


def _extract(source: Path, architecture: str, cubin: Path) -> bool:
    """Takes the machine code from the extension's build, if that has it as it is now."""
    newest = max(path.stat().st_mtime for path in CUDA.parent.rglob("*.*"))
    for tree in ROOT.glob("build/*/build_info.json"):
        built = tree.parent / "CMakeFiles/_C.dir/csrc/cuda" / f"{source.name}.o"
        if not json.loads(tree.read_text())["nvcc"].startswith(f"{nvcc_version()}."):
            continue
        if not built.exists() or built.stat().st_mtime < newest:
            continue
        if found := re.search(rf"\S+\.{architecture}\.cubin", _run("cuobjdump", "-lelf", str(built))):
            with tempfile.TemporaryDirectory() as folder:
                _run("cuobjdump", "-xelf", found[0], str(built), cwd=folder)
                shutil.move(Path(folder) / found[0], cubin)
            return True
    return False


def loops_of(sass: str) -> dict[str, tuple[Loop, ...]]:
    """By function."""
    functions: dict[str, list[tuple[int, str]]] = {}
    for line in sass.splitlines():
        if found := FUNCTION.match(line):
            functions[found[1]] = code = []
        elif found := INSTRUCTION.match(line):
            code.append((int(found[1], 16), found[2]))
    return {name: tuple(_loops(code)) for name, code in functions.items()}


def _loops(code: list[tuple[int, str]]) -> list[Loop]:
    place = {address: i for i, (address, _) in enumerate(code)}
    ends: dict[int, int] = {}  # by beginning; a loop may go back from several places
    for i, (address, text) in enumerate(code):
        branch = BRANCH.search(text)
        if branch and int(branch[1], 16) < address:  # a branch to itself ends a kernel
            ends[place[int(branch[1], 16)]] = i
    own: dict[int, list[str]] = {begin: [] for begin in ends}
    for i, (_, text) in enumerate(code):
        around = [(end - begin, begin) for begin, end in ends.items() if begin <= i <= end]
        if around:
            own[min(around)[1]].append(text)
    outer = {a for a in ends for b in ends if a != b and a <= b and ends[b] <= ends[a]}
    return [_count(texts, begin not in outer) for begin, texts in own.items()]


def _count(body: list[str], innermost: bool) -> Loop:
    """Loads in the order of issue; one whose register, or what is made of it, is read ends what was under way."""
    counts: Counter[str] = Counter()
    most, now = 0, 0
    pending: set[int] = set()
    for text in body:
        plain = re.sub(r"^@!?U?P\w+\s+", "", text)
        registers = [int(number) for number in re.findall(r"\bR(\d+)", plain)]
        operation, *suffixes = plain.split()[0].split(".")
        is_load = operation == "LDG"
        width = next((WIDTHS[suffix] for suffix in suffixes if suffix in WIDTHS), 4)
        counts["loads"] += is_load
        counts["loaded"] += width * is_load
        counts["stored"] += width * (operation == "STG")
        counts["exponentials"] += operation == "MUFU" and "EX2" in suffixes
        counts["multiply_adds"] += operation == "FFMA"
        if set(registers[1:] if is_load else registers) & pending:
            now, pending = 0, set()
        if is_load:
            now += 1
            pending |= set(range(registers[0], registers[0] + max(width // 4, 1)))
            most = max(most, now)
    return Loop(innermost, len(body), under_way=most, **counts)


SHORTER = {
    **{"void ": "", "(anonymous namespace)::": "", "pspnet_fast::cuda::": "", "true": "1", "false": "0"},
    **{"cuda_on_cpu::SmallFloat<cuda_on_cpu::Binary16>": "half", "__half": "half"},
    **{"cuda_on_cpu::SmallFloat<cuda_on_cpu::Bfloat16>": "bfloat16", "__nv_bfloat16": "bfloat16"},
}


def short_name(function: str) -> str:
    """A kernel's name and template arguments, from what the host's compiler or nvcc calls it."""
    for long, short in SHORTER.items():
        function = function.replace(long, short)
    return re.sub(r"\(\w+\)(?=-?\d)", "", function).partition("(")[0].replace(" >", ">")


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


def _run(tool: str, *arguments: str, cwd: str | None = None) -> str:
    command = [_tool(tool) or tool, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout
