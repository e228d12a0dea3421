"""The framed summary at the end of a build (pip shows it with -v; `python -m pspnet_fast` tells the same later)."""

from __future__ import annotations

import textwrap

from buildtools.cmake import BuildResult

WIDTH = 100


def framed(result: BuildResult) -> str:
    """What was built, and why the rest was not, in a frame."""
    lines = [f"pspnet_fast, for torch {result.torch or '(none found)'}"]
    for part, title in (("cpu", "CPU kernels (C++) "), ("cuda", "CUDA kernels      ")):
        if part in result.built:
            detail = result.compiler if part == "cpu" else f"nvcc {result.nvcc}, {' '.join(result.cuda_architectures)}"
            lines.append(f"{title} built: {detail}")
        else:
            lines.append(f"{title} NOT built: {result.skipped[part]}")
    lines.append("Triton kernels     need no build; the reference in PyTorch operators is always there")
    wrapped = [
        piece
        for line in lines
        for piece in textwrap.wrap(line, WIDTH - 4, subsequent_indent=" " * 19, break_long_words=True)
    ]
    edge = "+" + "-" * (WIDTH - 2) + "+"
    return "\n".join([edge, *(f"| {piece:<{WIDTH - 4}} |" for piece in wrapped), edge])
