"""Maps and virtual logits of more than 2**31 elements, where a 32-bit offset would go astray.

Each test takes most of a GPU's memory, so that no other process may use the GPU meanwhile.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from real_sizes import DEVICE, LAYOUT, blocky_labels, losses_by_image, random, require_kernel

import pspnet_fast
from pspnet_fast import reference


def require_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"{free:.0f} GB of GPU memory are free, {gigabytes} are needed")


def test_upsample_cross_entropy(backend: str) -> None:
    """8.6e9 full-resolution logits that never exist; the last image is where a 32-bit offset would go astray."""
    if backend == "reference":
        pytest.skip("the definition builds them")
    require_kernel("upsample_cross_entropy", backend)
    require_memory(60)
    logits, target = random(8, 512, 128, 256), blocky_labels(8, 1024, 2048, 512).clamp(max=511)
    leaf = logits.requires_grad_()
    loss = pspnet_fast.upsample_cross_entropy(leaf, target, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    one = partial(reference.upsample_cross_entropy, reduction="sum")
    total, (exact,) = losses_by_image(one, [logits], target, torch.float32)  # float64 would take 40 GB
    torch.testing.assert_close(loss.double(), total, rtol=1e-5, atol=0)
    for i in (0, 7):
        error = torch.linalg.vector_norm(gradient[i] - exact[i]) / torch.linalg.vector_norm(exact[i])
        assert error < 1e-4, f"gradient of image {i}"


def test_upsample_argmax(backend: str) -> None:
    require_kernel("upsample_argmax", backend)
    require_memory(60)
    logits = random(8, 512, 128, 256)
    labels = pspnet_fast.upsample_argmax(logits, (1024, 2048))
    for i in (0, 7):
        up = F.interpolate(logits[i : i + 1], (1024, 2048), mode="bilinear", align_corners=True)
        assert (labels[i] != up.argmax(dim=1)[0]).double().mean() < 1e-4


@LAYOUT
def test_pyramid_pool(backend: str, channels_last: bool) -> None:
    if backend == "reference":
        pytest.skip("the limits of stock operators are their own")
    require_memory(40)
    shape = (168, 2048, 80, 80)  # 2.2e9 elements
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    for image in x:  # a draw of all at once would need as much again in float32
        image.normal_()
    leaf = x.requires_grad_()
    pooled = pspnet_fast.pyramid_pool(leaf)
    upstream = torch.randn_like(pooled)
    (gradient,) = torch.autograd.grad(pooled, leaf, upstream)
    for i in (0, 167):
        image = x[i : i + 1].detach().double().requires_grad_()
        exact = reference.pyramid_pool(image)
        (exact_gradient,) = torch.autograd.grad(exact, image, upstream[i : i + 1].double())
        torch.testing.assert_close(pooled[i : i + 1].double(), exact, rtol=2e-2, atol=1e-3)
        torch.testing.assert_close(gradient[i : i + 1].double(), exact_gradient, rtol=2e-2, atol=1e-3)


@LAYOUT
def test_pyramid_concat(backend: str, channels_last: bool) -> None:
    if backend == "reference":
        pytest.skip("the limits of stock operators are their own")
    require_memory(40)
    x = random(84, 2048, 80, 80, dtype=torch.bfloat16, channels_last=channels_last)
    levels = random(84, 512, 50, dtype=torch.bfloat16).requires_grad_()
    merged = pspnet_fast.pyramid_concat(x, levels)  # 2.2e9 elements
    (gradient,) = torch.autograd.grad(merged, levels, merged.detach())
    for i in (0, 83):
        image = levels[i : i + 1].detach().double().requires_grad_()
        exact = reference.pyramid_concat(x[i : i + 1].double(), image)
        (exact_gradient,) = torch.autograd.grad(exact, image, merged[i : i + 1].detach().double())
        torch.testing.assert_close(merged[i : i + 1].double(), exact, rtol=1e-2, atol=1e-2)
        error = torch.linalg.vector_norm(gradient[i] - exact_gradient[0]) / torch.linalg.vector_norm(exact_gradient)
        assert error < 1e-2, f"gradient of image {i}"
