"""The operators as the dispatcher knows them: schemas, and torch.library.opcheck for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cross_entropy_cases import draw_target
from running import INTERPRETED, LAYOUTS, as_tuple, random
from torch.torch_version import TorchVersion

from pspnet_fast.extension import EXTENSION
from pspnet_fast.ops.operator import NAMESPACE, SCHEMAS, overload

TRITON = [
    f"{name}_triton" for name in SCHEMAS if name not in ("pyramid_levels", "upsample_add", "upsample_add_backward")
]
BINS = [1, 2, 3]
SIZES = [1, 1, 2, 2, 3, 3]
# Labels, a gradient in place, and what is made for inference (where a gradient is wanted other operators run).
WITHOUT_GRADIENT = (
    "upsample_argmax", "upsample_softmax_add", "pyramid_pool_backward_add", "pyramid_levels", "pyramid_conv_norm_relu",
    "check_labels",
)  # fmt: skip


def test_the_extension_defines_the_schemas_that_python_does() -> None:
    if EXTENSION.cpu is not None:
        pytest.skip(f"the extension is not loaded: {EXTENSION.cpu}")
    for name, schema in SCHEMAS.items():
        expected = torch._C.parse_schema(f"{NAMESPACE}::{name}{schema}")
        assert str(overload(name)._schema) == str(expected)


@pytest.mark.parametrize("name", SCHEMAS)
def test_operator_is_registered(name: str) -> None:
    operator = overload(name)
    assert torch.Tag.pt2_compliant_tag in operator.tags
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "Meta")
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(operator.name(), "CPU")
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(operator.name(), "CUDA")
    # Double backward included: a backward operator has a gradient of its own.
    if name not in WITHOUT_GRADIENT:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "Autograd")


def samples(name: str, layout: str = "nchw", size: tuple[int, int] = (7, 5)) -> Iterator[tuple[Any, ...]]:
    """Arguments for operator ``name`` on maps of ``size``; what it is differentiable by requires a gradient."""

    def leaf(*shape: int) -> torch.Tensor:
        return random(*shape, layout=layout).requires_grad_()

    low = tuple(min(n, 4) for n in size)
    target = draw_target((2, 9, 13), 3)
    class_weight, pixel_weight = torch.tensor([1.0, 0.5, 2.0]), random(2, 9, 13).abs()
    options = [
        (None, None, 255, 0.0, True),
        (class_weight, pixel_weight, -1, 0.1, False),
    ]
    targets = [target, target.masked_fill(target == 255, -1)]

    def norms(channels: int, count: int) -> tuple[list[Any], ...]:
        """mean, var, gamma, beta and eps of so many normalisations."""
        tensors = ([random(channels) for _ in range(count)] for _ in range(4))
        mean, var, gamma, beta = tensors
        return mean, [v.square() for v in var], gamma, beta, [1e-5] * count

    match name.removesuffix("_triton"):
        case "pyramid_pool":
            yield leaf(2, 3, *size), BINS
        case "pyramid_pool_backward":
            yield leaf(2, 3, 14), *size, BINS, layout == "channels_last"
        case "pyramid_pool_backward_add":
            yield (
                random(2, 3, *size, layout="channels_last" if layout == "channels_last" else "nchw"),
                random(2, 3, 14),
                BINS,
            )
        case "pyramid_levels":
            yield random(2, 3, *size, layout=layout), BINS, [random(4, 3, 1, 1) for _ in BINS], *norms(4, len(BINS))
        case "check_labels":
            yield (torch.empty(0),)
        case "pyramid_concat":
            yield leaf(2, 3, *size), leaf(2, 2, 14), BINS, True, False
        case "pyramid_concat_backward":
            yield leaf(2, 9, *size), 3, BINS, False, True
        case "pyramid_conv":
            yield leaf(2, 3, *size), leaf(2, 2, 14), leaf(4, 9, 3, 3), leaf(4), SIZES, True, True
            yield leaf(2, 3, *size), leaf(2, 2, 14), leaf(4, 5, 1, 1), None, [7, 2], False, False
        case "pyramid_conv_backward":
            for mask in ([True, True, True], [False, True, True], [True, False, False]):
                tensors = leaf(2, 4, *size), leaf(2, 3, *size), leaf(2, 2, 14), leaf(4, 9, 3, 3)
                yield *tensors, SIZES, True, True, mask
        case "pyramid_conv_norm_relu":
            maps = random(2, 3, *size, layout=layout), random(2, 2, 14), random(4, 9, 3, 3, layout=layout), random(4)
            yield *maps, *(values[0] for values in norms(4, 1)), SIZES, True, True
        case "upsample_cross_entropy":
            for per_pixel, labels, chosen in zip((False, True), targets, options, strict=True):
                yield leaf(2, 3, *low), labels, per_pixel, True, *chosen
        case "upsample_cross_entropy_backward":
            for per_pixel, labels, chosen in zip((False, True), targets, options, strict=True):
                logits = leaf(2, 3, *low)
                state = overload("upsample_cross_entropy")(logits.detach(), labels, per_pixel, True, *chosen)[2]
                yield leaf(*labels.shape if per_pixel else ()), logits, labels, state, per_pixel, *chosen
        case "dual_cross_entropy":
            for per_pixel, labels, chosen in zip((False, True), targets, options, strict=True):
                yield leaf(2, 3, *low), leaf(2, 3, 2, 5), labels, per_pixel, True, per_pixel, not per_pixel, *chosen
        case "upsample_add":
            base = leaf(2, 3, *size)
            packed = random(2, 3, 14).requires_grad_()
            yield packed, base, *size, SIZES, True, False
            yield packed, None, *size, [7, 2], False, layout == "channels_last"
        case "upsample_add_backward":
            yield leaf(2, 3, *size), SIZES, True
        case "upsample_argmax":
            yield random(2, 3, *low, layout=layout), 9, 13, True, torch.int64
            yield random(2, 3, *low, layout=layout), 9, 13, False, torch.uint8
        case "upsample_softmax_add":
            logits, total = random(2, 3, *low, layout=layout), random(2, 3, 9, 13, layout=layout)
            yield total, logits, 9, 13, True, False, 0.5, None, None, None, None
            index, weight = torch.arange(18, dtype=torch.int32).view(9, 2), torch.rand(9, 2)
            yield total, logits, 18, 13, False, True, 1.0, index, weight, None, None
        case _:
            raise AssertionError(f"no samples for {name}")


# opcheck: the schema is right about aliasing and mutation, autograd is registered where it belongs, fake tensors are as
# the real ones (strides included), and gradients agree under AOTAutograd with dynamic shapes.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*SCHEMAS, *TRITON])
def test_opcheck(name: str, layout: str) -> None:
    if name in TRITON and not INTERPRETED:
        pytest.skip("Triton's kernels take CPU tensors only with TRITON_INTERPRET=1")
    if name in TRITON and layout != "channels_last":
        pytest.skip("slow in Triton's interpreter; other layouts are tested with each operator")
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if layout in ("sliced", "transposed"):
        checks.pop()  # slow, and it takes strides from the fake tensors, which are checked here
    elif name == "pyramid_conv_backward" and TorchVersion(torch.__version__) < "2.12":
        checks.pop()  # torch 2.11's own double backward of a convolution fails on symbolic sizes
    for arguments in samples(name, layout):
        torch.library.opcheck(overload(name), arguments, test_utils=checks)


@pytest.mark.parametrize("size", [(1, 5), (7, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", [*SCHEMAS, *TRITON])
def test_fakes_have_the_strides_of_results_on_one_row_or_column(name: str, layout: str, size: tuple[int, int]) -> None:
    if name in TRITON and not INTERPRETED:
        pytest.skip("Triton's kernels take CPU tensors only with TRITON_INTERPRET=1")
    for arguments in samples(name, layout, size):
        torch.library.opcheck(overload(name), arguments, test_utils=["test_faketensor"])


@pytest.mark.parametrize("aux_layout", LAYOUTS)
@pytest.mark.parametrize("main_layout", LAYOUTS)
def test_fakes_of_two_heads_in_different_layouts(main_layout: str, aux_layout: str) -> None:
    mains, auxes = (samples("dual_cross_entropy", layout) for layout in (main_layout, aux_layout))
    for (main, _, *rest), (_, aux, *_) in zip(mains, auxes, strict=True):
        torch.library.opcheck(overload("dual_cross_entropy"), (main, aux, *rest), test_utils=["test_faketensor"])


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in WITHOUT_GRADIENT])
def test_training_after_inference_mode(name: str) -> None:
    """Tables that an operator keeps from call to call must not be inference tensors to autograd."""
    (arguments, *_) = samples(name)
    with torch.inference_mode():
        overload(name)(*(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments))
    results = as_tuple(overload(name)(*arguments))
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    gradients = torch.autograd.grad([r.sum() for r in results if r.requires_grad], leaves)
    assert all(g.isfinite().all() for g in gradients)
