"""Every operator, forward and backward, at small sizes that divide by nothing: what compute-sanitizer runs.

Edges of tiles, rows and warps are where kernels read or write too far. Without a GPU the definitions run.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pspnet_fast
from pspnet_fast.ops.pyramid_conv import pyramid_conv_norm_relu
from pspnet_fast.ops.pyramid_pool import pyramid_levels, pyramid_pool_through
from pspnet_fast.reference import NormStatistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAP, LOW, HIGH, CLASSES = (2, 24, 13, 17), (5, 7), (37, 51), 11
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
LAYOUT = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def drawn(*shape: int, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Random values, drawn on the CPU: copied memory counts as written, whatever kernel draws on a GPU."""
    x = torch.randn(shape).to(dtype)
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    return x.to(DEVICE).requires_grad_()


def finite(*results: Tensor) -> None:
    """Backward through the results; results and gradients hold numbers."""
    torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    assert all(result.isfinite().all() for result in results)
    torch.cuda.synchronize() if DEVICE == "cuda" else None


@DTYPE
@LAYOUT
def test_pyramid(backend: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = drawn(*MAP, dtype=dtype, layout=layout)
    finite(pspnet_fast.pyramid_pool(x))
    finite(*pyramid_pool_through(x))
    for channels in (8, 6):  # that vectors divide, and not
        levels = drawn(MAP[0], channels, 50, dtype=dtype)
        finite(pspnet_fast.pyramid_concat(x, levels))
    weight = drawn(8, MAP[1] + 4 * 6, 3, 3, dtype=dtype)
    finite(pspnet_fast.pyramid_conv(x, levels, weight))
    finite(pspnet_fast.pyramid_conv(x, levels, weight[..., 1:2, 1:2]))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    with torch.no_grad():
        norm = NormStatistics(*torch.rand(4, 8).to(DEVICE), 1e-5)
        assert pyramid_levels(x, [weight[:, : MAP[1], :1, :1]] * 4, [norm] * 4).isfinite().all()
        assert pyramid_conv_norm_relu(x, levels, weight, norm).isfinite().all()


@DTYPE
@LAYOUT
def test_upsample_add(backend: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    bins = (LOW, (3, 60), 1)
    for channels, size in ((8, HIGH), (35, HIGH), (6, (21, 32))):  # that vectors divide, and not
        levels = drawn(2, channels, LOW[0] * LOW[1] + 3 * 60 + 1, dtype=dtype)
        finite(pspnet_fast.upsample_add(levels, drawn(2, channels, *size, dtype=dtype, layout=layout), bins=bins))
        options = {"align_corners": False, "channels_last": layout is torch.channels_last}
        finite(pspnet_fast.upsample_add(levels, size=size, bins=bins, **options))


@DTYPE
@LAYOUT
def test_losses(backend: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    main, aux = (drawn(2, CLASSES, *LOW, dtype=dtype, layout=layout) for _ in range(2))
    target = torch.randint(CLASSES, (2, *HIGH))
    target[:, ::3] = 255
    target = target.to(DEVICE)
    finite(pspnet_fast.dual_cross_entropy(main, aux, target).loss)
    finite(pspnet_fast.upsample_cross_entropy(main, target, label_smoothing=0.1))
    finite(pspnet_fast.upsample_cross_entropy(main, target.int(), reduction="none"))
    far = (main.detach() * 100).requires_grad_()  # the branch of kernels for logits that lie far apart
    finite(pspnet_fast.dual_cross_entropy(far, aux, target.to(torch.uint8)).loss)
    labels = pspnet_fast.upsample_argmax(main, HIGH)
    assert int(labels.min()) >= 0
    assert int(labels.max()) < CLASSES
    total = torch.zeros(2, CLASSES, 5, HIGH[1], device=DEVICE)
    rows = pspnet_fast.AxisTaps(torch.arange(10, device=DEVICE).view(5, 2), torch.rand(5, 2, device=DEVICE))
    for taps, size in ((rows, HIGH), (None, (5, HIGH[1]))):
        pspnet_fast.upsample_softmax_add(total, main.detach(), size, flip=True, rows=taps)
    assert total.isfinite().all()
