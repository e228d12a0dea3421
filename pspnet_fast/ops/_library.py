"""The dispatcher's side of the operators: schemas, and registration of Python kernels, fakes and gradients.

With the compiled extension, csrc/ops.cpp defines the same schemas (a test holds the two lists against each other) and
registers the C++ and CUDA kernels. Without it they are defined here, so that ``torch.ops.pspnet_fast`` is complete in
every installation and exported programs load everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pspnet_fast.extension import EXTENSION

NAMESPACE = "pspnet_fast"

_CROSS_ENTROPY_OPTIONS = (
    "Tensor? weight, Tensor? pixel_weight, int ignore_index, float label_smoothing, str reduction, float denominator, "
    "str empty, bool align_corners"
)
_NORMS = "Tensor[] mean, Tensor[] var, Tensor[] gamma, Tensor[] beta, float[] eps"

SCHEMAS = {
    "pyramid_pool": "(Tensor x, int[] bins) -> Tensor",
    "pyramid_pool_backward": "(Tensor grad, SymInt height, SymInt width, int[] bins, bool channels_last) -> Tensor",
    "pyramid_pool_backward_add": "(Tensor(a!) grad_x, Tensor grad, int[] bins) -> ()",
    "pyramid_levels": f"(Tensor x, int[] bins, Tensor[] weight, {_NORMS}) -> Tensor",
    "pyramid_concat": "(Tensor x, Tensor levels, int[] bins, bool align_corners, bool x_first) -> Tensor",
    "pyramid_concat_backward": (
        "(Tensor grad, SymInt channels, int[] bins, bool align_corners, bool x_first) -> Tensor"
    ),
    "pyramid_conv": (
        "(Tensor x, Tensor levels, Tensor weight, Tensor? bias, int[] bins, bool align_corners, bool x_first) -> Tensor"
    ),
    "pyramid_conv_backward": (
        "(Tensor grad, Tensor x, Tensor levels, Tensor weight, int[] bins, bool align_corners, bool x_first, "
        "bool[3] mask) -> (Tensor, Tensor, Tensor)"
    ),
    "pyramid_conv_norm_relu": (
        "(Tensor x, Tensor levels, Tensor weight, Tensor? bias, Tensor mean, Tensor var, Tensor gamma, Tensor beta, "
        "float eps, int[] bins, bool align_corners, bool x_first) -> Tensor"
    ),
    "upsample_cross_entropy": (
        f"(Tensor logits, Tensor target, bool gradient, {_CROSS_ENTROPY_OPTIONS}) -> (Tensor, Tensor, Tensor)"
    ),
    "upsample_cross_entropy_backward": (
        f"(Tensor grad, Tensor scale, Tensor logits, Tensor target, Tensor state, {_CROSS_ENTROPY_OPTIONS}) -> Tensor"
    ),
    "dual_cross_entropy": (
        f"(Tensor main, Tensor aux, Tensor target, bool gradient, bool labels, bool correct, {_CROSS_ENTROPY_OPTIONS}) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "dual_cross_entropy_backward": (
        "(Tensor grad_main, Tensor grad_aux, Tensor scale, Tensor main, Tensor aux, Tensor target, "
        f"Tensor main_state, Tensor aux_state, {_CROSS_ENTROPY_OPTIONS}) -> (Tensor, Tensor)"
    ),
    "upsample_argmax": ("(Tensor logits, SymInt height, SymInt width, bool align_corners, ScalarType dtype) -> Tensor"),
}

if EXTENSION.cpu is not None:
    for _name, _schema in SCHEMAS.items():
        torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)


def overload(name: str) -> Any:
    """``torch.ops.pspnet_fast.<name>.default``."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def suffix(backend: str) -> str:
    """What a backend's operators are named by behind the operator's own name."""
    return "_triton" if backend == "triton" else ""


def register_triton(name: str, kernel: Callable[..., Any]) -> None:
    """Define ``<name>_triton``, an operator of its own so that it can be had beside the compiled one."""
    qualified = f"{NAMESPACE}::{name}_triton"
    torch.library.define(qualified, SCHEMAS[name], tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "CompositeExplicitAutograd")(kernel)


def register_composition(name: str, kernel: Callable[..., Any]) -> None:
    """Give operator ``name`` a kernel made of PyTorch operators, for every device without a native one."""
    torch.library.impl(f"{NAMESPACE}::{name}", "CompositeExplicitAutograd")(kernel)


def register(
    name: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register the shape function of ``name`` and, where given, its gradient formula."""
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)


def register_autocast(name: str, lower_precision: bool = False, keep: Sequence[str] = ()) -> None:
    """Say what ``name`` does under autocast.

    With ``lower_precision`` its tensors are cast to the autocast dtype, as for a convolution, but for the arguments
    named in ``keep``; else they keep their dtypes (the operator sums in float32 by itself). Either way autocast is off
    inside, so that it cannot reach the PyTorch operators that a composition is made of.
    ``torch.library.register_autocast`` knows only a fixed dtype.
    """
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        kernel = _autocast_kernel(name, device_type, key, lower_precision, keep)
        torch.library.impl(f"{NAMESPACE}::{name}", key)(kernel)


def _autocast_kernel(
    name: str, device_type: str, key: str, lower_precision: bool, keep: Sequence[str]
) -> Callable[..., Any]:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    lowered = [argument.name not in keep for argument in overload(name)._schema.arguments]

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            if lower_precision:
                dtype = torch.get_autocast_dtype(device_type)
                args = tuple(_lower(a, dtype) if low else a for a, low in zip(args, lowered, strict=False))
            return overload(name)(*args)

    return kernel


def _lower(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, list):
        return [_lower(a, dtype) for a in argument]
    if isinstance(argument, torch.Tensor) and argument.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return argument.to(dtype)
    return argument


def second_gradient(
    function: Callable[..., Any], inputs: Sequence[Tensor], grad: Tensor, cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Differentiate a backward pass once more, by the definition of its forward.

    Args:
        function: the reference of the forward operator, over the tensors ``inputs``.
        inputs: the differentiable inputs of forward.
        grad: the upstream gradient that backward was given.
        cotangents: the gradients with respect to backward's results, one per input; None where there is none.

    Returns:
        The gradients with respect to ``grad`` and to each of ``inputs``.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        upstream = grad.detach().requires_grad_()
        first = torch.autograd.grad(function(*leaves), leaves, upstream, create_graph=True)
        wanted = [(f, c) for f, c in zip(first, cotangents, strict=True) if c is not None]
        return list(
            torch.autograd.grad([f for f, _ in wanted], [upstream, *leaves], [c for _, c in wanted], allow_unused=True)
        )
