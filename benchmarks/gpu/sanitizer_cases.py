"""Calls every operator, forward and backward, at small sizes: what compute-sanitizer runs under its tools.

python -m benchmarks.gpu.sanitizer_cases cuda|triton|cpu|reference
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import pspnet_fast
from benchmarks.case import LAYOUTS, blocky_labels
from pspnet_fast.ops.pyramid_conv_norm_relu import pyramid_conv_norm_relu
from pspnet_fast.ops.pyramid_levels import pyramid_levels
from pspnet_fast.ops.pyramid_pool import pyramid_pool_through
from pspnet_fast.reference import NormStatistics

DONE = "every case was called"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Sizes that divide by nothing: edges of strips, rows and warps are where kernels read or write too far.
MAP, LOW, HIGH, CLASSES = (2, 24, 13, 17), (5, 7), (37, 51), 11


def cases(device: str) -> Iterator[str]:
    """Run case after case; yields the name of each one done."""
    for layout in LAYOUTS:
        for dtype in DTYPES:
            pyramid(device, dtype, layout)
            yield f"pyramid {dtype} {layout}"
            cross_entropy(device, dtype, layout)
            yield f"cross-entropy {dtype} {layout}"


def drawn(*shape: int, device: str, dtype: torch.dtype, layout: str = "NCHW") -> Tensor:
    """Random values, drawn on the CPU: copied memory counts as written, whatever kernel draws on a GPU."""
    x = torch.randn(shape).to(dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x
    return x.to(device).requires_grad_()


def pyramid(device: str, dtype: torch.dtype, layout: str) -> None:
    x = drawn(*MAP, device=device, dtype=dtype, layout=layout)
    pspnet_fast.pyramid_pool(x).sum().backward()
    both = pyramid_pool_through(x)
    torch.autograd.backward(both, [torch.ones_like(result) for result in both])
    for channels in (8, 6):  # that vectors divide, and not
        levels = drawn(MAP[0], channels, 50, device=device, dtype=dtype)
        merged = pspnet_fast.pyramid_concat(x, levels)
        merged.backward(torch.ones_like(merged))
    weight = drawn(8, MAP[1] + 4 * 6, 3, 3, device=device, dtype=dtype)
    pspnet_fast.pyramid_conv(x, levels, weight).sum().backward()
    pspnet_fast.pyramid_conv(x, levels, weight[..., 1:2, 1:2]).sum().backward()
    with torch.no_grad():
        norm = NormStatistics(*torch.rand(4, 8, device=device), 1e-5)
        pyramid_levels(x, [weight[:, : MAP[1], :1, :1]] * 4, [norm] * 4)
        pyramid_conv_norm_relu(x, levels, weight, norm)


def cross_entropy(device: str, dtype: torch.dtype, layout: str) -> None:
    main, aux = (drawn(2, CLASSES, *LOW, device=device, dtype=dtype, layout=layout) for _ in range(2))
    target = blocky_labels(2, *HIGH, CLASSES, device)
    pspnet_fast.dual_cross_entropy(main, aux, target).loss.backward()
    pspnet_fast.upsample_cross_entropy(main, target, label_smoothing=0.1).backward()
    pspnet_fast.upsample_cross_entropy(main, target.int(), reduction="none").sum().backward()
    far = (main.detach() * 100).requires_grad_()  # what kernels take another path for
    pspnet_fast.dual_cross_entropy(far, aux, target.to(torch.uint8)).loss.backward()
    pspnet_fast.upsample_argmax(main, HIGH)


def main() -> None:
    backend = sys.argv[1]
    device = "cuda" if backend in ("cuda", "triton") else "cpu"
    torch.manual_seed(0)
    with pspnet_fast.use_backend(backend):
        for name in cases(device):
            print(name, flush=True)
    if device == "cuda":
        torch.cuda.synchronize()
    print(DONE)


if __name__ == "__main__":
    main()
