"""docs/counters.md, made of what counters.py counts and what sass.py reads; and what must not stand there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiling import CUDA, ROOT, compiler_version
from counter_cases import DTYPES, Case
from counters import Bytes, Count, Counted, Site
from hot_loops import instructions_each
from sass import Kernel, compile_kernels, nvcc_version

PAGE = ROOT / "docs" / "counters.md"
ARCHITECTURES = ("sm_90", "sm_80")
AGAIN = "python tests/cuda_on_cpu/run.py counters --write"
MOST_MOVED = 1.15  # times the floor
# Operators that move more: how much they may, and why. Maps and logits have few rows here: what does not grow with them
# weighs more.
EXCEPTIONS = {
    "dual_cross_entropy": (2.3, "tiles read the logits of their borders twice, and add gradients there through memory"),
    "pyramid_concat_backward": (1.65, "channels_last: sums of pieces go through memory in float32"),
    "pyramid_conv": (3.0, "every block reads Q"),
    "pyramid_conv_backward": (12.5, "every run of rows writes sums of its own"),
    "pyramid_levels": (1.45, "the sums of bins are read in float32"),
    "upsample_add": (1.25, "every block reads the levels"),
    "upsample_add_backward": (7.2, "the gradient is read for each level, and more than once in channels_last"),
    "upsample_argmax": (2.1, "tiles read the logits of their borders twice"),
    "upsample_cross_entropy": (1.65, "tiles read the logits of their borders twice"),
    "upsample_softmax_add": (1.25, "a row of pixels reads both rows of logits round it"),
}

KERNEL_COLUMNS = (
    *("kernel", "layout", "sectors / fewest", "wavefronts / fewest", "lanes"),
    *("registers", "stack", "warps", "loads", "loop", "each"),
)

INTRODUCTION = """\
# What the CUDA kernels ask of a GPU, counted and not timed

No GPU is needed for this page, and no time is on it. `{again}` makes it
anew; tests in `tests/cuda_on_cpu` fail where a kernel and the page differ: a change of a kernel comes with its change
here.

The kernels run on the CPU and report every access of memory. What the lanes of a warp access by the same instruction,
each for the n-th time, is one request. Shapes have rows as long as PSPNet's (60 and 90 pixels for crops of 473 and 713,
256 for Cityscapes) and few channels, images and rows of logits (`tests/cuda_on_cpu/counter_cases.py`). float16 is as
wide as bfloat16 and counts the same; float64 is left out, as no model runs in it. Products over channels are the
library's (cuBLAS), and are not counted. Kernels are compiled by {compiler}, for no extension of the
processor: how wide an access is, is that compiler's choice, and nvcc merges some.
"""
BYTES = """\
## Bytes

Floor: each byte of an argument that is read, and each byte that is written, once; in kilobytes. After it, as multiples
of the floor: the sectors of 32 bytes that blocks read and write, each counted once a block, as if a block's cache held
all that it has had; and in brackets each counted for every request, as if there were no cache. A GPU is between them.
At the shorter and at the longer rows. What moves more than {most} has its reason and a limit of its own, which a test
holds.
"""
KERNELS = """\
## Kernels

A request of a warp takes so many sectors of global memory, and wavefronts of shared memory (each bank gives one word a
wavefront), of the fewest that would do for the same bytes. Lanes: of 32, those that take part, over all basic blocks.
At the shorter and at the longer rows, where a kernel runs at both; of float32 and bfloat16, where they differ.

The rest is machine code, as nvcc {nvcc} compiles it, for {architectures} where these differ. Warps: of 64, those that a
multiprocessor has at once, by registers and shared memory. Stack: bytes, spilled registers among them. Loads: of global
memory, those under way before the first is used, in each loop that has any (in brackets, how many loops have as many;
of a loop around others, what is outside of these). Loop: instructions of the longest innermost loop.

Each: instructions of the loops that do a kernel's work, over what an iteration of one does for a lane
(`tests/cuda_on_cpu/hot_loops.py`). All of the loop counts but other loops in it, what is behind a branch, too: most
classes leave the loop of the arg-max early, and most rows of `upsample_add` load no bins. What is done is a pixel and
class of the losses, the arg-max and the softmax, with a number for every pass over the classes: sums and gradients of
the losses (logits of every type go through these loops, once they are in shared memory), maximum, sum and probability
of the softmax. Of `pyramid_conv` it is a multiply-add; of other kernels an element of the map, and in `upsample_add` of
a level.
"""
LINES = """\
## Lines that cost most

For each kernel, and each thing that it does, the line with most sectors, wavefronts or lanes too many, over all cases,
where they are a quarter of the fewest.
"""


def page(counted: Counted, kernels: Mapping[str, Mapping[str, Kernel]]) -> str:
    """``kernels`` by architecture and name; without any, what needs no nvcc."""
    architectures = " and ".join(f"`{name}`" for name in kernels)
    code = {
        name: code_cells(*launch, {a: of[name] for a, of in kernels.items()})
        for name, launch in counted.launches.items()
    }
    parts = [
        INTRODUCTION.format(again=AGAIN, compiler=compiler_version()),
        BYTES.format(most=MOST_MOVED),
        table(["operator", "layout", *DTYPES, "limit: why"], bytes_rows(counted)),
        KERNELS.format(nvcc=nvcc_version(), architectures=architectures),
        table(KERNEL_COLUMNS, [(*row, *code[row[0].strip("`")]) for row in kernel_rows(counted)]),
        LINES,
        table(["kernel", "what", "line", "each / fewest"], line_rows(counted)),
    ]
    return "\n".join(parts)


def compile_all(architecture: str) -> dict[str, Kernel]:
    sources = sorted(CUDA.glob("*.cu"))
    return {kernel.name: kernel for source in sources for kernel in compile_kernels(source, architecture)}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(map(line_of, [head, [":---" for _ in head], *rows]))


def line_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


# ---- Rows -----------------------------------------------------------------------------------------------------------


def bytes_rows(counted: Counted) -> list[list[str]]:
    cells: dict[tuple[str, str], dict[str, list[Bytes]]] = {}
    for (operator, case), one in sorted(counted.calls.items()):
        cells.setdefault((operator, case.layout), {}).setdefault(case.dtype, []).append(one)
    return [
        [f"`{operator}`", layout, *(", ".join(map(_bytes, of[dtype])) for dtype in DTYPES), _exception(operator)]
        for (operator, layout), of in cells.items()
    ]


def kernel_rows(counted: Counted) -> list[list[str]]:
    def key(site: Site) -> tuple[str, Case, str]:
        return site.kernel, site.case, site.what.partition(" ")[0]

    cells: dict[tuple[str, str], dict[str, dict[str, list[str]]]] = {}
    for (kernel, case, what), count in sorted(counted.sums(key).items()):
        columns = cells.setdefault((kernel, case.layout), {"global": {}, "shared": {}, "lanes": {}})
        columns[what].setdefault(case.dtype, []).append(_each(what, count))
    return [
        [
            f"`{kernel}`",
            layout,
            *("; ".join(dict.fromkeys(", ".join(of[d]) for d in DTYPES if d in of)) for of in columns.values()),
        ]
        for (kernel, layout), columns in cells.items()
    ]


def line_rows(counted: Counted) -> list[list[str]]:
    worst: dict[tuple[str, str], tuple[int, str, Count]] = {}
    lines = counted.sums(lambda site: (site.kernel.partition("<")[0], site.what, site.source))
    for (kernel, what, source), count in lines.items():
        lost = count.units - count.fewest
        if lost > max(count.fewest // 4, worst.get((kernel, what), (0,))[0]):
            worst[kernel, what] = lost, source, count
    return [
        [f"`{kernel}`", what, f"`{_short(source)}`", _each(what, count)]
        for (kernel, what), (_, source, count) in sorted(worst.items())
    ]


def code_cells(threads: int, dynamic_shared: int, compiled: Mapping[str, Kernel]) -> list[str]:
    """Of a kernel that is launched so, as compiled for each architecture."""
    rows = []
    for architecture, kernel in compiled.items():
        warps = kernel.warps(threads, dynamic_shared, architecture)
        loops = _loads(kernel), kernel.longest, instructions_each(kernel)
        rows.append((kernel.registers, kernel.spilled, warps, *loops))
    return [" / ".join(dict.fromkeys(map(str, column))) for column in zip(*rows, strict=True)] or [""] * 6


def _loads(kernel: Kernel) -> str:
    loops = [loop.under_way for loop in kernel.loops]
    numbers = {number: loops.count(number) for number in sorted(loops, reverse=True)}
    return ", ".join(f"{number} ({times})" if times > 1 else str(number) for number, times in numbers.items())


def _bytes(one: Bytes) -> str:
    return f"{one.floor / 1000:.0f}: {one.moved / one.floor:.2f} ({one.requested / one.floor:.1f})"


def _exception(operator: str) -> str:
    return "{:.2f}: {}".format(*EXCEPTIONS[operator]) if operator in EXCEPTIONS else ""


def _each(what: str, count: Count) -> str:
    if what == "lanes":
        return f"{count.lanes / count.requests:.1f}"
    return f"{count.units / count.requests:.2f} / {count.fewest / count.requests:.2f}"


def _short(source: str) -> str:
    source = source.replace("|", "\\|").replace("`", "'")
    return source if len(source) <= 80 else source[:77] + "..."
