"""Runs the operators' tests over csrc/cuda on the CPU.

    python tests/cuda_on_cpu/run.py [plain | checked] [arguments of pytest]
    python tests/cuda_on_cpu/run.py counters [--write]

``plain`` runs every test of the back end ``cuda``, and opcheck in one layout, which takes what CPU tensors run on.
``checked``, under AddressSanitizer and UndefinedBehaviorSanitizer, leaves out what compiles or exports: it runs no
other kernels. ``counters`` prints what the kernels ask of a GPU's memory, or writes it into docs/counters.md; the page
tells what nvcc makes of them, too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from compiling import ROOT, build, operators, preloaded
from counters import count
from counters_page import ARCHITECTURES, PAGE, compile_all, page
from sass import missing_tool


def environment(variant: str, library: Path) -> dict[str, str]:
    """What makes tests/ops run over a library that was built as ``variant``."""
    own = {"PSPNET_FAST_CUDA_ON_CPU": str(library), "PSPNET_FAST_EXPECT_BACKENDS": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    # What the sanitizers look for does not depend on the order of threads, which `plain` varies.
    checked = {**preloaded(), "CUDA_ON_CPU_ONE_ORDER": "1"} if variant == "checked" else {}
    return {**os.environ, **checked, **own}


def arguments(variant: str, for_pytest: Sequence[str], of_names: str = "") -> list[str]:
    """Of pytest, for ``variant``; ``of_names`` is an expression that the tests' names fulfil as well."""
    chosen = "(cuda or (opcheck and channels_last))" if variant == "plain" else "cuda and not compile and not export"
    options = ["-k", f"{chosen} and ({of_names})" if of_names else chosen]
    # A sanitizer's report goes past Python, and the process ends with it: pytest must not hold it back.
    return [*for_pytest, *options, *(["--capture=sys"] if variant == "checked" else [])]


def main() -> None:
    variant, *for_pytest = sys.argv[1:] or ["plain"]
    if variant == "counters":
        write, lacking = for_pytest == ["--write"], missing_tool()
        if write and lacking:
            sys.exit(f"the page has what nvcc makes of the kernels: {lacking}")
        text = page(count(operators("counted")), {} if lacking else {a: compile_all(a) for a in ARCHITECTURES})
        PAGE.write_text(text) if write else print(text)
        return
    library = operators(variant)
    build([library])
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-k", default="")
    names, others = parser.parse_known_args(for_pytest)
    command = [sys.executable, "-m", "pytest", *arguments(variant, others or ["tests/ops"], names.k)]
    os.execve(command[0], command, environment(variant, library.output))


if __name__ == "__main__":
    main()
