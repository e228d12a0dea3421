"""docs/counters.md, made of what counters.py counts and what sass.py reads; and what must not stand there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from compiling import CUDA, ROOT, compiler_version
from counters import Count, Counted, Launch
from sass import Kernel, compile_kernels

PAGE = ROOT / "docs" / "counters.md"
ARCHITECTURES = ("sm_90",)
AGAIN = "python tests/cuda_on_cpu/run.py counters --write"
MOST_MOVED = 1.15  # times the floor
# Operators that move more, and why. Maps and logits have few rows here: what does not grow with them weighs more.
EXCEPTIONS = {
    "dual_cross_entropy": "tiles read the logits of their borders twice, and add their gradients there through memory",
    "pyramid_concat_backward": "channels_last: sums of pieces go through memory in float32",
    "pyramid_conv": "every block reads Q",
    "pyramid_conv_backward": "every run of rows writes sums of its own",
    "pyramid_levels": "atoms go through memory in float32",
    "upsample_add": "every block reads the levels",
    "upsample_add_backward": "the gradient is read for each level, and more than once in channels_last",
    "upsample_argmax": "tiles read the logits of their borders twice",
    "upsample_cross_entropy": "tiles read the logits of their borders twice",
    "upsample_softmax_add": "a row of pixels reads both rows of logits round it",
}

INTRODUCTION = """\
# What the CUDA kernels ask of a GPU, counted and not timed

No GPU is needed for this page, and no time is on it. `python tests/cuda_on_cpu/run.py counters --write` makes it anew,
and `tests/cuda_on_cpu/test_counters.py` fails where a kernel and the page differ: a change of a kernel comes with its
change here.

The kernels run on the CPU and report every access of memory. What the lanes of a warp access by the same instruction,
each for the n-th time, is one request. Shapes have rows as long as PSPNet's (60 and 90 pixels for crops of 473 and 713,
256 for Cityscapes) and few channels, images and rows of logits (`tests/cuda_on_cpu/counter_cases.py`).

Not counted: time, what tensor cores load, and caches, but for the one of a block: a sector counts as moved once for
each block that has it. How wide an access is, is the host compiler's choice ({compiler}); nvcc merges some.
"""
BYTES = """\
## Bytes

Moved: sectors of 32 bytes that blocks read and write. Floor: each byte of an argument that is read, and each byte that
is written, once. In kilobytes, at the shorter and at the longer rows.
"""
REQUESTS = """\
## Requests

A request of a warp takes so many sectors of global memory, and wavefronts of shared memory (each bank gives one word a
wavefront), of the fewest that would do for the same bytes. Lanes: of 32, those that take part, over all basic blocks.
Where a kernel runs at both shapes, there are two numbers.
"""
LINES = """\
## Lines that cost most

For each kernel, and each thing that it does, the line with most sectors, wavefronts or lanes too many, over all cases.
"""
CODE = """\
## Machine code

As nvcc compiles it for {architectures}. Warps: of 64, those that a multiprocessor has at once, by registers and shared
memory. Loads: of global memory, those under way before the first is used, in the innermost loop that has most (0: no
such loop loads). Stack: bytes, spilled registers among them. Loop: instructions of the longest innermost loop.
"""


def page(counted: Counted, kernels: dict[str, dict[str, Kernel]]) -> str:
    code = CODE.format(architectures=" / ".join(f"`{name}`" for name in kernels))
    parts = [
        INTRODUCTION.format(compiler=compiler_version()),
        counted_part(counted),
        code,
        code_table(counted, kernels),
    ]
    return "\n".join(parts)


def counted_part(counted: Counted) -> str:
    return "\n".join([BYTES, bytes_table(counted), REQUESTS, requests_table(counted), LINES, lines_table(counted)])


def compile_all(architecture: str) -> dict[str, Kernel]:
    sources = sorted(CUDA.glob("*.cu"))
    return {kernel.name: kernel for source in sources for kernel in compile_kernels(source, architecture)}


# ---- Tables ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, [":---" for _ in head], *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def bytes_table(counted: Counted) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for call in counted.calls:
        cell = f"{call.moved / 1000:.0f} / {call.floor / 1000:.0f} = {call.moved / call.floor:.2f}"
        rows.setdefault((call.operator, call.case.layout, call.case.dtype), []).append(cell)
    named = [(f"`{key[0]}`", *key[1:], *cells, EXCEPTIONS.get(key[0], "")) for key, cells in sorted(rows.items())]
    return table(["operator", "layout", "dtype", "moved / floor", "longer rows", "why more"], named)


def requests_table(counted: Counted) -> str:
    rows: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for (name, case), launch in sorted(counted.launches.items()):
        cells = str(case.side), _of(launch.loads_stores), _of(launch.shared), _lanes(launch.passes)
        rows.setdefault((f"`{name}`", case.layout), []).append(cells)
    joined = [
        (*key, *(", ".join(filter(None, cells)) for cells in zip(*each, strict=True))) for key, each in rows.items()
    ]
    return table(["kernel", "layout", "columns", "sectors / fewest", "wavefronts / fewest", "lanes"], joined)


def lines_table(counted: Counted) -> str:
    worst: dict[tuple[str, str], tuple[int, str, Count]] = {}
    for line, count in counted.lines.items():
        key, lost = (line.kernel, line.what), count.units - count.fewest
        if lost > worst.get(key, (count.fewest // 10,))[0]:
            worst[key] = (lost, line.source, count)
    rows = [
        (f"`{kernel}`", what, f"`{_short(source)}`", _lanes(count) if what == "lanes" else _of(count))
        for (kernel, what), (_, source, count) in sorted(worst.items())
    ]
    return table(["kernel", "what", "line", "each / fewest"], rows)


def code_table(counted: Counted, kernels: dict[str, dict[str, Kernel]]) -> str:
    launches = {name: launch for (name, _), launch in sorted(counted.launches.items())}
    return table(
        ["kernel", "registers", "stack", "warps", "loads", "loop"],
        [code_row(launch, {a: of[name] for a, of in kernels.items()}) for name, launch in launches.items()],
    )


def code_row(launch: Launch, compiled: dict[str, Kernel]) -> list[str]:
    """Cells of the kernel, each with a number for every architecture."""
    cells: list[Callable[[str, Kernel], int]] = [
        lambda _, k: k.registers,
        lambda _, k: k.spilled,
        lambda architecture, k: k.warps(launch.threads, launch.shared_bytes, architecture),
        lambda _, k: k.under_way,
        lambda _, k: k.longest,
    ]
    return [f"`{launch.name}`", *(" / ".join(str(cell(a, k)) for a, k in compiled.items()) for cell in cells)]


def _of(count: Count) -> str:
    return f"{count.units / count.requests:.2f} / {count.fewest / count.requests:.2f}" if count.requests else ""


def _lanes(count: Count) -> str:
    return f"{count.lanes / count.requests:.1f}"


def _short(source: str) -> str:
    source = source.replace("|", "\\|").replace("`", "'")
    return source if len(source) <= 80 else source[:77] + "..."


# ---- What must not be -----------------------------------------------------------------------------------------------


def too_much_moved(counted: Counted) -> dict[str, float]:
    """Operators that move more than the floor allows, with the most that they do."""
    most: dict[str, float] = {}
    for call in counted.calls:
        most[call.operator] = max(most.get(call.operator, 0), call.moved / call.floor)
    return {operator: times for operator, times in most.items() if times > MOST_MOVED}
