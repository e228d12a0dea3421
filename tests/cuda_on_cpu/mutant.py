"""A fault planted in a copy of csrc/cuda's kernels, by text, and how those of each file are named.

A mutant names a text that stands once in its file. Where the text is gone the kernel has changed, and the fault must be
planted anew: that is an error, not a skip.
"""

from __future__ import annotations

import re
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

# In brackets the operator whose tests of the contract run.
OPTIONS, SIZES, ANY_SIZE = (
    f"tests/ops/test_operators.py::test_{of}" for of in ("options", "sizes", "any_size_and_options")
)
POOL = f"{SIZES}[pyramid_pool]"
POOL_ADD = "tests/ops/test_pyramid_pool_through.py::test_backward_add"
CONCAT = f"{OPTIONS}[pyramid_concat]"
CONCAT_SIZES = f"{SIZES}[pyramid_concat]"
CONV = f"{OPTIONS}[pyramid_conv and not norm]"
CONV_SIZES = f"{SIZES}[pyramid_conv and not norm]"
CONV_RELU = f"{OPTIONS}[pyramid_conv_norm_relu]"
SPECIAL = "tests/ops/test_special_values.py::test_pyramids[pyramid_conv]"
LEVELS = f"{SIZES}[pyramid_levels]"
LOSS = f"{OPTIONS}[upsample_cross_entropy]"
LOSS_SHAPES = "tests/ops/test_cross_entropy_paths.py::test_shapes"
ARGMAX = f"{OPTIONS}[upsample_argmax]"
CORRECT = "tests/ops/test_dual_cross_entropy.py::test_correct_pixels"


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


def nchw(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of the pooling kernels for NCHW."""
    return Mutant(f"pyramid_pool_{name}", "pyramid_pool_nchw.cu", before, after, shows, POOL, variant)


def nhwc(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of those for channels_last."""
    return Mutant(f"pyramid_pool_nhwc_{name}", "pyramid_pool_nhwc.cu", before, after, shows, POOL, variant)


def packs(name: str, unit: str, before: str, after: str, shows: str, tests: str = POOL) -> Mutant:
    """Of what both share."""
    return Mutant(
        f"pyramid_pool_{name}", "pyramid_pool.cuh", before, after, shows, tests, unit=f"pyramid_pool_{unit}.cu"
    )


def concat(
    kernel: str, name: str, before: str, after: str, shows: str, variant: str = "plain", tests: str = CONCAT
) -> Mutant:
    unit = f"pyramid_concat_{kernel}"
    return Mutant(f"{unit}_{name}", f"{unit}.cu", before, after, shows, tests, variant)


def conv(
    kernel: str, name: str, before: str, after: str, shows: str, variant: str = "plain", tests: str = CONV
) -> Mutant:
    unit = f"pyramid_conv_{kernel}"
    return Mutant(f"{unit}_{name}", f"{unit}.cu", before, after, shows, tests, variant)


def run_of(kernel: str, name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of what adding to the image and gathering from it share."""
    file, unit = "pyramid_conv_run.cuh", f"pyramid_conv_{kernel}.cu"
    return Mutant(f"pyramid_conv_run_{name}", file, before, after, shows, CONV, variant, unit)


def levels(name: str, before: str, after: str, shows: str, tests: str = LEVELS) -> Mutant:
    return Mutant(f"pyramid_levels_{name}", "pyramid_levels.cu", before, after, shows, tests)


def loss(name: str, before: str, after: str, shows: str, variant: str = "plain", tests: str = LOSS) -> Mutant:
    """Of the cross-entropy kernel."""
    file, unit = "cross_entropy_tile.cuh", "cross_entropy.cu"
    return Mutant(f"cross_entropy_{name}", file, before, after, shows, tests, variant, unit)


def finish(name: str, before: str, after: str, shows: str, variant: str = "plain") -> Mutant:
    """Of the kernels that follow it."""
    return Mutant(f"cross_entropy_finish_{name}", "cross_entropy_finish.cu", before, after, shows, LOSS, variant)


def argmax(name: str, before: str, after: str, shows: str, tests: str = ARGMAX, variant: str = "plain") -> Mutant:
    return Mutant(f"upsample_argmax_{name}", "upsample_argmax.cu", before, after, shows, tests, variant)


def upsample_add(
    name: str, before: str, after: str, shows: str, tests: str = OPTIONS, variant: str = "plain"
) -> Mutant:
    file = "upsample_add_bwd.cu" if name.startswith("bwd") else "upsample_add.cu"
    return Mutant(f"upsample_add_{name}", file, before, after, shows, f"{tests}[upsample_add]", variant)


def softmax_add(name: str, before: str, after: str, shows: str, test: str = "", variant: str = "plain") -> Mutant:
    file = "upsample_softmax_add.cu"
    tests = f"tests/ops/test_upsample_softmax_add.py::{test}" if test else f"{OPTIONS}[upsample_softmax_add]"
    return Mutant(f"upsample_softmax_add_{name}", file, before, after, shows, tests, variant)
