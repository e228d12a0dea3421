from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from running import (
    DTYPES,
    LAYOUTS,
    Backend,
    check_compiles,
    check_exactness,
    check_exports,
    check_gradients_twice,
    check_meta,
    check_same_bits,
    check_writes_everything,
    differentiate,
    random,
)
from torch import Tensor

from pspnet_fast import pyramid_conv, reference

OPERATOR = "pyramid_conv"
BINS = (1, 2, 3, 6)


def draw(
    size: tuple[int, int], bins: Sequence[reference.Bin] = BINS, kernel: tuple[int, int] = (3, 3), layout: str = "nchw",
    batch: int = 2, **kwargs: Any,
) -> list[Tensor]:  # fmt: skip
    """x of 5 channels, levels of 3, a weight to 4 scaled as an initialised layer's would be, and a bias."""
    channels = 5 + 3 * len(bins)
    x = random(batch, 5, *size, layout=layout, **kwargs)
    levels = random(batch, 3, sum(h * w for h, w in reference.level_sizes(bins)), **kwargs)
    weight = random(4, channels, *kernel, layout="channels_last" if layout == "channels_last" else "nchw", **kwargs)
    return [x, levels, weight / (channels * kernel[0] * kernel[1]) ** 0.5, random(4, **kwargs)]


def both(**options: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return functools.partial(pyramid_conv, **options), functools.partial(reference.pyramid_conv, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("x_first", [True, False], ids=["x_first", "x_last"])
def test_pyramid_conv(backend: Backend, align_corners: bool, x_first: bool, layout: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"align_corners": align_corners, "x_first": x_first}
    backend.require(dtype, options if not (align_corners and x_first) else None)
    inputs = draw((7, 10), layout=layout, dtype=dtype, device=backend.device)
    check_exactness(*both(**options), inputs)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sums_of_gradients_may_leave_the_range_of_float16(backend: Backend, layout: str) -> None:
    """What the levels and the weight get is small, as they are; the sum of the gradient over the map is not."""
    backend.require(torch.float16)
    x, levels, weight, _ = draw((24, 24), layout=layout, dtype=torch.float16, device=backend.device)
    inputs = [t.requires_grad_() for t in (x / 8, levels.abs() / 128, weight / 128)]
    upstream = torch.full((2, 4, 24, 24), 400.0, dtype=torch.float16, device=backend.device)  # times 576 is 230400
    grads = torch.autograd.grad(pyramid_conv(*inputs), inputs, upstream)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(reference.pyramid_conv(*exact), exact, upstream.double())
    for grad, wanted in zip(grads, expected, strict=True):
        assert wanted.abs().max() < 30000
        torch.testing.assert_close(grad.double(), wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


# More output channels than a block or a tile takes, columns likewise, and rows for several strips.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("out_channels", "level_channels", "size"), [(72, 8, (19, 72)), (44, 70, (9, 68)), (33, 3, (17, 67))]
)
def test_many_channels_and_columns(
    backend: Backend, out_channels: int, level_channels: int, size: tuple[int, int], layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype)
    channels = 8 + 4 * level_channels
    shared = {"dtype": dtype, "device": backend.device}
    x, levels = random(1, 8, *size, layout=layout, **shared), random(1, level_channels, 50, **shared)
    weight = random(out_channels, channels, 3, 3, layout=layout, **shared) / (9 * channels) ** 0.5
    check_exactness(*both(), [x, levels, weight])


# Levels of more cells than the kernels for small ones take, in several panels and runs of outputs; one of one row, one
# as large as the map, one larger.
LARGE = [
    ((24, 48), ((12, 24), (6, 12), (3, 6)), 12, 40),
    ((33, 20), ((1, 20), (33, 20), (40, 9)), 9, 5),
    ((16, 70), ((16, 67), 2), 2, 68),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (1, 5)], ids=str)
@pytest.mark.parametrize(("size", "bins", "level_channels", "out_channels"), LARGE)
def test_large_levels_of_any_shape(
    backend: Backend, size: tuple[int, int], bins: Sequence[reference.Bin], level_channels: int, out_channels: int,
    kernel: tuple[int, int], layout: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    backend.require(dtype, {"layout": layout, "kernel": kernel})
    shared = {"dtype": dtype, "device": backend.device}
    channels = 3 + len(bins) * level_channels
    cells = sum(h * w for h, w in reference.level_sizes(bins))
    x, levels = random(2, 3, *size, layout=layout, **shared), random(2, level_channels, cells, **shared)
    weight = random(out_channels, channels, *kernel, layout=layout, **shared) / (kernel[0] * channels) ** 0.5
    check_exactness(*both(bins=bins, align_corners=kernel == (1, 1)), [x, levels, weight], layout)


def test_more_levels_than_tables_hold(backend: Backend) -> None:
    check_exactness(*both(bins=[1, 2] * 5), draw((4, 5), [1, 2] * 5, device=backend.device))


def test_identity_in_float64(backend: Backend) -> None:
    inputs = draw((13, 9), dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(
        differentiate(pyramid_conv, inputs), differentiate(reference.pyramid_conv, inputs), rtol=1e-12, atol=1e-12
    )


@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    bins=st.lists(
        st.one_of(st.integers(1, 7), st.tuples(st.integers(1, 9), st.integers(1, 9))), min_size=1, max_size=4
    ),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    layout=st.sampled_from(list(LAYOUTS)),
    align_corners=st.booleans(),
    x_first=st.booleans(),
    biased=st.booleans(),
)
def test_any_shape_and_options(
    backend: Backend,
    size: tuple[int, int],
    bins: list[reference.Bin],
    kernel: tuple[int, int],
    layout: str,
    align_corners: bool,
    x_first: bool,
    biased: bool,
) -> None:
    inputs = draw(size, bins, kernel, layout, device=backend.device)
    check_exactness(*both(bins=bins, align_corners=align_corners, x_first=x_first), inputs if biased else inputs[:3])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (1, 2, 3)], ids=str)
def test_gradients_of_some_inputs(backend: Backend, wanted: tuple[int, ...]) -> None:
    inputs = draw((6, 7), device=backend.device)

    def gradients(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        return torch.autograd.grad(function(*leaves).square().sum(), [leaves[i] for i in wanted])

    torch.testing.assert_close(gradients(pyramid_conv), gradients(reference.pyramid_conv), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_gradcheck(backend: Backend, align_corners: bool) -> None:
    function = functools.partial(pyramid_conv, bins=(1, 2), align_corners=align_corners)
    check_gradients_twice(function, draw((4, 3), (1, 2), dtype=torch.float64, device=backend.device, batch=1))


@pytest.mark.parametrize("biased", [True, False])
def test_empty_batch(backend: Backend, biased: bool) -> None:
    inputs = draw((5, 7), batch=0, device=backend.device)[: 4 if biased else 3]
    (y,), gradients = differentiate(pyramid_conv, inputs)
    assert y.shape == (0, 4, 5, 7)
    for gradient, tensor in zip(gradients, inputs, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_same_bits_every_run(backend: Backend, layout: str) -> None:
    check_same_bits(pyramid_conv, draw((9, 11), layout=layout, device=backend.device))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_the_number_of_threads_does_not_matter(backend: Backend, layout: str) -> None:
    if backend.name != "cpu":
        pytest.skip("threads are the CPU kernels'")
    x, *rest = draw((9, 11), layout=layout, device=backend.device)
    # Nothing of oneDNN's convolution over x is left in the result, whose threads may share a sum.
    check_same_bits(lambda *tensors: pyramid_conv(torch.zeros_like(x), *tensors), rest, threads=(1, 2, 3))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_writes_every_element(backend: Backend, layout: str) -> None:
    check_writes_everything(pyramid_conv, draw((5, 7), layout=layout, device=backend.device))


def test_a_side_of_one_may_have_any_stride(backend: Backend) -> None:
    inputs = draw((5, 1), layout="channels_last", device=backend.device)
    plain = random(2, 4, 5, 1, layout="channels_last", device=backend.device)
    odd = plain.as_strided(plain.shape, (*plain.stride()[:3], 999))
    assert odd.is_contiguous(memory_format=torch.channels_last)
    results = (differentiate(pyramid_conv, inputs, [upstream])[1] for upstream in (odd, plain))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_inputs_are_left_alone(backend: Backend, layout: str) -> None:
    inputs = draw((5, 7), layout=layout, device=backend.device)
    before = [t.clone() for t in inputs]
    differentiate(pyramid_conv, inputs)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_meta(backend: Backend, layout: str) -> None:
    # Of a convolution in channels_last, stock too, a meta tensor does not know the layout (a fake tensor does).
    inputs = draw((5, 7), layout=layout, device=backend.device)
    check_meta(pyramid_conv, inputs, strides=layout == "nchw")


def test_compile(backend: Backend) -> None:
    inputs = [draw(size, device=backend.device) for size in ((7, 9), (10, 8))]
    check_compiles(lambda x, *rest: pyramid_conv(x * 3, *rest) + 1, *inputs, backend=backend.compiler)


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    check_exports(pyramid_conv, draw((7, 9), device=backend.device), backend.operator(OPERATOR))


def test_autocast_lowers_as_a_convolution_does(backend: Backend) -> None:
    backend.require(torch.bfloat16)
    inputs = draw((7, 9), device=backend.device)

    def lowered(*tensors: Tensor) -> Tensor:
        with torch.autocast(backend.device.type, dtype=torch.bfloat16):
            return pyramid_conv(*tensors)

    (y,), gradients = differentiate(lowered, inputs)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in gradients] == [torch.float32] * 4
    expected = differentiate(reference.pyramid_conv, [t.bfloat16().float() for t in inputs])
    torch.testing.assert_close((y.float(), *gradients), (*expected[0], *expected[1]), rtol=0.05, atol=0.1)


def zeros(**shapes: Sequence[int]) -> dict[str, Any]:
    good = {"x": (2, 3, 5, 7), "levels": (2, 2, 5), "weight": (4, 7, 3, 3), "bias": (4,)}
    return {name: torch.zeros(*shape) for name, shape in {**good, **shapes}.items()}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": (3, 5, 7)}, r"x must be \[B, C, H, W\], not of shape \(3, 5, 7\)"),
        ({"levels": (2, 2, 6)}, r"levels must be \[2, channels, 5\] .* not \(2, 2, 6\)"),
        ({"weight": (4, 8, 3, 3)}, r"weight must be \[O, 7, kh, kw\] .* not \(4, 8, 3, 3\)"),
        ({"weight": (4, 7, 3)}, r"weight must be \[O, 7, kh, kw\] .* not \(4, 7, 3\)"),
        ({"weight": (4, 7, 2, 3)}, r"weight must have odd kernel sides"),
        ({"bias": (5,)}, r"bias must be \[4\], not \(5,\)"),
    ],
)
def test_bad_shapes(backend: Backend, shapes: dict[str, Sequence[int]], words: str) -> None:
    tensors = {name: t.to(backend.device) for name, t in zeros(**shapes).items()}
    with pytest.raises(ValueError, match=words):
        pyramid_conv(**tensors, bins=(1, 2))


@pytest.mark.parametrize(
    "bins", [(), (0,), (1, (2, 0)), ((1, 2, 3),), ((1.0, 2),), (True, (1, 1)), ((1, 5000),)], ids=str
)
def test_bad_bins(backend: Backend, bins: Any) -> None:
    with pytest.raises(ValueError, match="bins must be a sequence of integers of 1 to 4096"):
        pyramid_conv(**{name: t.to(backend.device) for name, t in zeros().items()}, bins=bins)


@pytest.mark.parametrize("name", ["levels", "weight", "bias"])
def test_tensors_of_two_devices_or_dtypes(backend: Backend, name: str) -> None:
    good = {n: t.to(backend.device) for n, t in zeros().items()}
    with pytest.raises(ValueError, match=rf"{name} is on meta but x on"):
        pyramid_conv(**{**good, name: good[name].to("meta")}, bins=(1, 2))
    with pytest.raises(TypeError, match=rf"{name} is torch.float64 but x torch.float32"):
        pyramid_conv(**{**good, name: good[name].double()}, bins=(1, 2))


@pytest.mark.parametrize("kernel", [1, 3])
def test_native_operator_without_channels_of_x(backend: Backend, kernel: int) -> None:
    if backend.name not in ("cpu", "cuda"):
        pytest.skip("the native operators' own")
    levels, bias = random(2, 3, 5, device=backend.device), random(4, device=backend.device)
    weight = random(4, 7, kernel, kernel, device=backend.device)
    weight[:, 0] = 0
    operator = torch.ops.pspnet_fast.pyramid_conv
    no_x, x = (torch.zeros(2, c, 4, 5, device=backend.device) for c in (0, 1))
    actual = differentiate(lambda p, w: operator(no_x, p, w, bias, [1, 1, 2, 2], True, True), [levels, weight[:, 1:]])
    expected = differentiate(lambda p, w: reference.pyramid_conv(x, p, w, bias, bins=(1, 2)), [levels, weight])
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], (expected[1][0], expected[1][1][:, 1:]))
