"""A fault planted in a copy of csrc/cuda's kernels, by text.

A mutant names a text that stands once in its file. Where the text is gone the kernel has changed, and the fault must be
planted anew: that is an error, not a skip.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from compiling import BUILD, CUDA, Target, operators, write

ORDER = r"depends on the order of threads"
UNWRITTEN = r"nan instead of"
WRONG = r"relative error .* allowed"
SPREAD = r"Tensor-likes are not"
ASTRAY = r"AddressSanitizer|runtime error"  # an index that was not written
BEYOND = r"AddressSanitizer: (heap-buffer-overflow|use-after-poison)"

# Where a launcher goes on to kernels of another type than float32, which mutants are compiled without.
OTHER_TYPE = re.compile(r"(ElementType::(?:f64|f16|bf16)(?::|\))) return .*;$", re.MULTILINE)
FLOAT32_ALONE = r'\1 throw std::runtime_error("a mutant is compiled for float32 alone");'


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # of csrc/cuda
    before: str
    after: str
    shows: str  # a regular expression that the red run prints
    tests: str
    variant: str = "plain"
    unit: str = ""  # the .cu file that includes `file`, if that is a header
    every_type: bool = False  # else kernels, and tests, are of float32 alone: that takes half of the time

    def plant(self) -> Target:
        """Writes copies of the kernels, one of them changed; returns the library of operators with the changed unit."""
        found = (CUDA / self.file).read_text().count(self.before)
        if found != 1:
            raise LookupError(f"mutant {self.name}: its text stands {found} times in {self.file}:\n{self.before}")
        folder = BUILD / "mutants" / self.name
        for source in (self.file, *(path.name for path in CUDA.glob("*.cuh"))):
            text = (CUDA / source).read_text()
            write(folder / source, self._of(text.replace(self.before, self.after) if source == self.file else text))
        unit = folder / (self.unit or self.file)
        if self.unit:
            write(unit, self._of((CUDA / self.unit).read_text()))
        return operators(self.variant, self.name, unit)

    def _of(self, text: str) -> str:
        return text if self.every_type else OTHER_TYPE.sub(FLOAT32_ALONE, text)


def mutants_of(kernel: str, usual_tests: str, header: str = "") -> Callable[..., Mutant]:
    """Makes mutants of a kernel's file, or of a header that it includes."""

    def mutant(
        name: str,
        before: str,
        after: str,
        shows: str,
        variant: str = "plain",
        tests: str = usual_tests,
        every_type: bool = False,
    ) -> Mutant:
        file, unit = (header, f"{kernel}.cu") if header else (f"{kernel}.cu", "")
        return Mutant(f"{kernel}_{name}", file, before, after, shows, tests, variant, unit, every_type)

    return mutant
