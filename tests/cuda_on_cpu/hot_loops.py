"""Which of a kernel's loops do its work, and how much of it a lane has done after an iteration.

Instructions over that compare kernels, and a kernel before and after a change, however far loops are unrolled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sass import Kernel, Loop

ROWS = 8  # of pixels in a cell, for a lane of the losses and of the arg-max
NODES = 4  # round a cell: a logit, or an element, is interpolated from as many

# By a kernel's name. The second argument is the size of an element in bytes.
DONE: dict[str, Callable[[Loop, int], float]] = {
    # Pixels and classes. A row of a cell takes two exponentials a class.
    r"cross_entropy_kernel<float, 8>": lambda loop, _: loop.exponentials / 2 * 8,
    r"cross_entropy_kernel<float, 9>": lambda loop, _: loop.exponentials / 2 * 9,
    # The loop that takes two classes at once: others look again where a logit is not finite.
    r"upsample_argmax_kernel<.*, 8>": lambda loop, _: 2 * ROWS * (loop.loads == 2 * NODES),
    # The last pass loads what it adds to, in float32.
    r"upsample_softmax_add_kernel<.*, 1>": lambda loop, _: (loop.loads - loop.stored / 4) / NODES,
    # Multiply-adds.
    r"pyramid_conv_(add|gather)_kernel": lambda loop, _: loop.multiply_adds,
    # Elements of the map; of sums of levels, at each level.
    r"pyramid_pool_fwd_n[ch]": lambda loop, size: loop.loaded / size,
    r"pyramid_pool_bwd_n[ch]": lambda loop, size: loop.stored / size,
    r"pyramid_concat_fwd_n[ch]": lambda loop, size: loop.stored / size * (loop.loaded == NODES * loop.stored),
    r"pyramid_concat_bwd_(nchw|pieces)": lambda loop, size: loop.loaded / size,
    r"upsample_add_fwd_kernel": lambda loop, size: loop.loaded / size / NODES,
    r"upsample_add_bwd_kernel": lambda loop, size: loop.loaded / size,
}


def instructions_each(kernel: Kernel) -> str:
    """One number for every pass over the classes; an empty text where DONE has no such kernel."""
    found = [done for name, done in DONE.items() if re.match(name, kernel.name)]
    if not found:
        return ""
    size = 2 if re.search("<(half|bfloat16)", kernel.name) else 4
    does = [(loop, done) for loop in kernel.all_loops if (done := found[0](loop, size)) > 0]
    if not does:
        raise LookupError(f"{kernel.name}: no loop does what {Path(__file__).name} says of it")
    hot = [(loop, done) for loop, done in does if loop.innermost] or does
    most = max(done for _, done in hot)  # the others are for what is left over
    return " + ".join(f"{loop.instructions / done:.3g}" for loop, done in hot if done == most)
