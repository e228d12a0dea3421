from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from drawing import draw_add, draw_conv
from running import DENSE, LAYOUTS, Backend, check_exactness, check_gradients_twice, random
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pspnet_fast import pyramid_conv, reference, upsample_add
from pspnet_fast.backend import use_backend
from pspnet_fast.ops.pyramid_conv import upsampled_conv

OPERATOR = "upsample_add"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("based", [True, False], ids=["base", "alone"])
def test_layout_of_the_maps(backend: Backend, based: bool, layout: str) -> None:
    if backend.name == "reference":
        pytest.skip("stock operators choose their own layout")
    fused, _, inputs = draw_add(layout=layout, based=based, device=backend.device)
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert fused(*inputs).is_contiguous(memory_format=format_)


@pytest.mark.parametrize("layout", DENSE)
def test_gradient_of_the_levels_has_the_layout_of_the_maps(backend: Backend, layout: str) -> None:
    fused, _, (levels, base) = draw_add(layout=layout, device=backend.device)
    (grad,) = torch.autograd.grad(fused(levels.requires_grad_(), base), levels, base)
    if backend.name != "reference":
        assert grad.mT.is_contiguous() == (layout == "channels_last")


@pytest.mark.parametrize("layout", DENSE)
def test_levels_in_other_strides(backend: Backend, layout: str) -> None:
    fused, _, (levels, base) = draw_add(layout=layout, device=backend.device)
    strided = levels.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(fused(strided, base), fused(levels, base), rtol=0, atol=0)


def test_one_node_for_each_input(backend: Backend) -> None:
    """The gradient of the base is the upstream gradient itself."""
    fused, _, inputs = draw_add(device=backend.device)
    levels, base = (t.requires_grad_() for t in inputs)
    upstream = random(*base.shape, device=backend.device)
    for given in (levels, levels.detach()):
        (grad,) = torch.autograd.grad(fused(given, base), base, upstream)
        torch.testing.assert_close(grad, upstream, rtol=0, atol=0)


def test_compile_with_levels_of_dynamic_size(backend: Backend) -> None:
    torch.compiler.reset()
    sizes: list[int] = []

    def function(maps: Tensor) -> Tensor:
        h, w = maps.shape[2:]
        return upsample_add(maps.flatten(2), size=(2 * h, 2 * w), bins=((h, w),))

    def counting(graph: Any, inputs: Any) -> Any:
        sizes.append(len(inputs))
        return graph

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counting)
    for size in ((3, 4), (5, 7), (6, 9)):
        maps = random(1, 2, *size, device=backend.device)
        torch.testing.assert_close(compiled(maps), function(maps))
    assert len(sizes) == 1, "a graph for every size"


# ---- The convolution over levels that are too large for the kernels of GPUs: of upsampled maps, by cuDNN -------------

LARGE = [(3, 30), (4, 5)]


@pytest.mark.parametrize("x_first", [True, False], ids=["x_first", "x_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("layout", DENSE)
def test_upsampled_conv(backend: Backend, layout: str, align_corners: bool, x_first: bool) -> None:
    def fused(*tensors: Tensor) -> Tensor:
        y = upsampled_conv(*tensors, [n for size in LARGE for n in size], align_corners, x_first)
        assert y.is_contiguous(memory_format=torch.channels_last) is (layout == "channels_last")
        return y

    def definition(*tensors: Tensor) -> Tensor:
        return reference.pyramid_conv(*tensors, bins=LARGE, align_corners=align_corners, x_first=x_first)

    x, *others = draw_conv((7, 11), LARGE, (3, 1), device=backend.device).inputs
    check_exactness(fused, definition, [LAYOUTS[layout](x), *others])
    if layout == "nchw":
        check_gradients_twice(fused, [x, *others])


@pytest.mark.parametrize(
    ("device", "bins", "forced", "upsampled"),
    [
        ("cuda:0", LARGE, "auto", True),
        ("cuda:0", [(28, 1), (5, 32)], "auto", True),
        ("cuda:0", [(6, 6), (26, 26)], "auto", False),
        ("cuda:0", LARGE, "triton", False),
        ("cpu", LARGE, "auto", False),
    ],
    ids=str,
)
def test_large_levels_on_a_gpu(
    device: str, bins: Any, forced: str, upsampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A back end that is asked for gets them anyway. No tensor has memory, so that no GPU is needed."""
    module = sys.modules[upsampled_conv.__module__]
    called: list[object] = []
    monkeypatch.setattr(module, "upsampled_conv", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(module, "CONV", lambda *_: None)
    with FakeTensorMode(), use_backend(forced):
        pyramid_conv(*draw_conv((7, 11), bins, (3, 1), device=device).inputs, bins=bins)
    assert bool(called) is upsampled
