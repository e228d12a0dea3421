"""Compiles csrc/cuda, and kernels of the tests, for the CPU (ninja and g++, into build/cuda_on_cpu)."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "cuda_on_cpu"

COMPILER = os.environ.get("CXX", "g++")
# Kernels' multiply-adds are fused as nvcc fuses them, where the processor can: GCC does that with these three alone.
HAS_FMA = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
FUSED = ["-mfma", "-ffp-contract=fast", "-fexpensive-optimizations"] if HAS_FMA else []
# How soon a kernel is compiled matters as much as how fast it runs: most of the time goes there.
VARIANTS = {
    "plain": ["-O1"],
    "checked": [
        *("-Og", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
        *("-fsanitize=address,undefined", "-fno-sanitize=null,vptr"),  # a null pointer stops it anyway
    ],
    # Hooks for counting.cpp, and vectors moved as one, as nvcc moves them.
    "counted": [
        *("-Og", "-g1", "-finline-small-functions", "-fno-tree-sra", "-fno-ipa-sra"),
        *("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fsanitize-coverage=trace-pc"),
    ],
}
# What is not a kernel, and the linker, have no part in counting.
OF_HOST = {"counted": "plain"}
# -iquote: a changed copy of a kernel finds its headers where the original does. Its own folder comes first.
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", f"-iquote{CUDA}", f"-I{HERE / 'include'}"]
LINK = [f"-Wl,-T,{HERE / 'shared_memory.ld'}"]
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # the layer and its tests; csrc has its own build
TORCH = Path(torch.__file__).parent
TORCH_FLAGS = [f"-isystem{TORCH / 'include'}", f"-isystem{TORCH / 'include/torch/csrc/api/include'}"]
TORCH_LINK = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]

RULES = """\
rule compile
  command = $compiler $flags -MMD -MF $out.d -x $language -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $variant: $in
rule link
  command = $compiler $flags $in $libraries -o $out
  description = $out
"""


@dataclass(frozen=True)
class Target:
    """A library of operators, which is linked with torch, or a program."""

    name: str
    sources: tuple[Path, ...]
    variant: str
    is_library: bool = False
    defines: tuple[str, ...] = ()

    @property
    def output(self) -> Path:
        return BUILD / self.variant / (f"lib{self.name}.so" if self.is_library else self.name)


def operators(variant: str, name: str = "operators", changed: Path | None = None) -> Target:
    """All of csrc/cuda as a library for torch.ops.load_library, with ``changed`` instead of the file of its name."""
    sources = [*sorted(CUDA.glob("*.cu")), _all_of_host(), HERE / "control.cpp"]
    sources += [HERE / "counting.cpp"] if variant == "counted" else []
    if changed is not None:
        sources = [changed if source.name == changed.name else source for source in sources]
        assert changed in sources, f"csrc/cuda has no {changed.name}"
    return Target(name, tuple(sources), variant, is_library=True)


def _all_of_host() -> Path:
    """A file that includes csrc/cuda/*.cpp: torch's headers take longer than all that is in them."""
    together = BUILD / "host.cpp"
    write(together, "".join(f'#include "{path}"\n' for path in sorted(CUDA.glob("*.cpp"))))
    return together


def write(path: Path, text: str) -> None:
    """Leaves a file of that text alone, so that what is made of it stays up to date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(text)
        new.replace(path)


def missing_tool() -> str | None:
    """Why nothing can be built here, if so."""
    absent = [tool for tool in (COMPILER, "ninja") if _find(tool) is None]
    return f"not found: {', '.join(absent)}" if absent else None


def compiler_version() -> str:
    done = subprocess.run([COMPILER, "-dumpfullversion"], capture_output=True, text=True, check=True)
    return f"{Path(COMPILER).name} {done.stdout.strip()}, {platform.machine()}"


def build(targets: Sequence[Target]) -> None:
    """Updates the targets; raises RuntimeError with the compiler's words where it cannot."""
    BUILD.mkdir(parents=True, exist_ok=True)
    # Test processes that run side by side build the same objects.
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (BUILD / "build.ninja").write_text(_ninja_file(targets))
        ninja = _find("ninja")
        assert ninja is not None, missing_tool()
        command = [ninja, "-C", str(BUILD), *(str(target.output) for target in targets)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"csrc/cuda does not compile for the CPU:\n{done.stdout}{done.stderr}")


def _find(tool: str) -> str | None:
    beside_python = str(Path(sys.executable).parent)
    return shutil.which(tool, path=os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)]))


def _ninja_file(targets: Sequence[Target]) -> str:
    links, compiled = [], {}  # by output: targets share objects
    for target in targets:
        own = []
        host = OF_HOST.get(target.variant, target.variant)
        for source in target.sources:
            inside = source.relative_to(BUILD) if source.is_relative_to(BUILD) else source.relative_to(ROOT)
            variant = host if source.suffix == ".cpp" else target.variant
            of_mutant = source.is_relative_to(BUILD / "mutants") and variant != "counted"  # compiled for a test or two
            flags = [*FLAGS, *VARIANTS[variant], *(f"-D{define}" for define in target.defines)]
            flags += FUSED if variant == "plain" and source.suffix == ".cu" else []
            flags += ["-O0"] if of_mutant else []
            flags += ["-O2"] if source.stem == "counting" else []  # called at every access
            flags += TORCH_FLAGS if source.suffix == ".cpp" else []
            headers = None
            if target.is_library and source.suffix == ".cu":  # headers are of the same optimization
                header = HERE / "headers_of_cu.h"
                headers = BUILD / variant / ("mutants" if of_mutant else "all") / f"{header.name}.gch"
                compiled[headers] = _compile(headers, header, flags, variant, "c++-header")
                flags = [*flags, "-include", str(headers.with_suffix(""))]
            flags += STRICT if source.is_relative_to(HERE) else []
            output = BUILD / variant / "objects" / "-".join([*target.defines, f"{inside}.o"])
            compiled[output] = _compile(output, source, flags, variant, "c++", headers)
            own.append(output)
        link = [*VARIANTS[host], *LINK, *(["-shared"] if target.is_library else [])]
        links += [f"build {target.output}: link {' '.join(map(str, own))}", f"  flags = {' '.join(link)}"]
        links += [f"  libraries = {' '.join(TORCH_LINK if target.is_library else [])}"]
    return "\n".join([f"compiler = {COMPILER}", RULES, *compiled.values(), *links]) + "\n"


def _compile(
    output: Path, source: Path, flags: Sequence[str], variant: str, language: str, headers: Path | None = None
) -> str:
    """A statement of ninja's; ``headers`` are precompiled, as half of the time goes there."""
    lines = [f"build {output}: compile {source}{f' | {headers}' if headers else ''}"]
    lines += [f"  flags = {' '.join(flags)}", f"  variant = {variant}", f"  language = {language}"]
    return "\n".join(lines)


def preloaded() -> dict[str, str]:
    """Environment of a process that loads a checked library: the sanitizer must be the first thing in it.

    libstdc++ comes with it: the interpreter does not link it, and the sanitizer must come before its throw.
    """
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):
        found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        libraries.append(found.stdout.strip())
    # Fibers of a launch that failed are dropped with what they hold; Python never frees everything.
    return {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"}
