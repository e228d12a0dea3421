"""Adaptive average pooling to every size of a pyramid in one pass (PSPNet's first step; Zhao et al. 2017, section 3.2).

The bin edges of all levels cut each axis into a few intervals, and the map into atoms. The kernels sum every atom once
and every bin from its atoms, so ``x`` is read once, not once a level; in backward the gradient is constant on an atom
and is written once. Native kernels: csrc/cpu/pyramid_pool*.cpp, csrc/cuda/pyramid_pool*.cu, triton/pyramid_pool.py.

In evaluation mode a 1x1 convolution, normalisation and ReLU may follow at every size. Normalisation by fixed statistics
is a factor and a sum, so one kernel applies it, and the ReLU, to the products of all levels, and packs them:
csrc/cuda/pyramid_levels.cu. Elsewhere that is composed of the fused pooling and PyTorch operators.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.geometry import bin_averages
from pspnet_fast.layout import empty_map, format_of, is_channels_last, is_dense
from pspnet_fast.ops.checks import check_alike, check_bins, check_map, check_norm, check_tensor, differentiable
from pspnet_fast.ops.operator import Operator, overload, save_map
from pspnet_fast.reference import DEFAULT_BINS, NormStatistics


def pyramid_pool(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> Tensor:
    """Average-pool ``x`` to ``k x k`` for every ``k`` of ``bins``; equals ``F.adaptive_avg_pool2d`` for each.

    Args:
        x: ``[B, C, H, W]``, float32, float64, float16 or bfloat16 (sums are taken in float32 at least), in NCHW or
            channels_last memory; other layouts are copied. Any H and W, bins that overlap or repeat pixels included.
        bins: the sides of the levels, in the order they are packed.

    Returns:
        ``[B, C, Σk²]`` of x's dtype: level after level, each row-major.

    Raises:
        ValueError: ``x`` is not a map, or ``bins`` are not positive integers.
        TypeError: ``x`` is not floating-point.
        BackendError: a forced backend cannot run on x's device.

    Differentiable twice (it is linear). Deterministic on every backend.
    """
    check_map("x", x)
    output: Tensor = POOL(x, check_bins(bins))
    return output


def pyramid_pool_through(x: Tensor, bins: Sequence[int] = DEFAULT_BINS) -> tuple[Tensor, Tensor]:
    """``x`` again and :func:`pyramid_pool` of it, for a consumer of both that makes a new gradient for the first.

    In backward the gradient of the pooled levels is added into the gradient that came for the ``x`` returned here, so
    that no second map of x's size is written and none is summed. Where somebody else holds that gradient too, as a
    hook does that keeps it, it is copied first. Arguments and errors as for :func:`pyramid_pool`.
    """
    check_map("x", x)
    checked = check_bins(bins)
    backend = POOL.backend(x)
    # The definition's gradients may be views of one another, a compiler plans its memory itself, and a trace records no
    # Python function.
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if backend == "reference" or recorded or not differentiable(x):
        return x, POOL(x, checked)
    count_owned(frame_references(object()))  # here, where no graph is being run
    through: tuple[Tensor, Tensor] = _PoolThrough.apply(x, checked, backend)
    return through


def pyramid_levels(
    x: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int] = DEFAULT_BINS
) -> Tensor:
    """Pool ``x`` to every size of ``bins``, and project, normalise and rectify each level.

    Args:
        x: ``[B, C, H, W]``, floating-point, NCHW or channels_last.
        weights: a level's 1x1 convolution ``[Ck, C, 1, 1]`` for each of ``bins``, of x's dtype.
        norms: statistics of a level's batch normalisation for each of ``bins``, ``[Ck]`` tensors.
        bins: the sides of the levels, in the order they are packed.

    Returns:
        ``[B, Ck, Σk²]`` of x's dtype: level after level, each row-major.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together, or the lists are not as long as ``bins``.

    Made for inference: where a gradient is wanted it runs as differentiable PyTorch operators behind the fused pooling.
    Under autocast it runs in the lower precision, as a convolution does.
    """
    checked = check_bins(bins)
    check_map("x", x)
    _check_levels(x, weights, norms, checked)
    mean, var, gamma, beta, eps = (list(values) for values in zip(*norms, strict=True))
    output: Tensor = LEVELS(x, checked, list(weights), mean, var, gamma, beta, eps)
    return output


def holders(grad: Tensor) -> tuple[int, int, int]:
    """How many hold ``grad``: references from C++ to the tensor, of tensors to its memory, and from Python to it.

    Other holders than a backward itself are a hook that kept the gradient, ``torch.autograd.grad`` that returns it,
    another function that was handed the same one, or a view.
    """
    memory = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
    return cast(Any, grad)._use_count(), memory, sys.getrefcount(grad)


# What `holders` counts where `backward` alone holds its parameter, by `frame_references`. It depends on the versions of
# Python and of torch, so it is counted in a graph where no other code can hold one.
_OWNED: dict[int, tuple[int, int, int]] = {}


def frame_references(to: object) -> int:
    """Of a new object: more where Dynamo runs the frames, which it goes on doing behind a compilation that failed."""
    return sys.getrefcount(to)


@functools.cache
def count_owned(frame: int) -> None:
    """Counts once for each ``frame_references``."""
    # Code that Dynamo compiles has other references, and a caller may be run by it.
    dynamo = sys.modules.get("torch._dynamo")
    _count() if dynamo is None else dynamo.disable(_count)()


def _count() -> None:
    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            _OWNED[frame_references(object())] = holders(grad)
            return grad

    with torch.enable_grad():
        (Count.apply(torch.zeros(1, device="cpu", requires_grad=True)) * 2).backward()


class _PoolThrough(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, bins: list[int], backend: str) -> tuple[Tensor, Tensor]:
        return x.view_as(x), POOL.run(backend, x, bins)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.bins, ctx.backend = inputs
        ctx.size, ctx.channels_last = x.shape[-2:], is_channels_last(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_pooled: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad_pooled is None:
            return grad_x, None, None
        if grad_x is None or torch.is_grad_enabled() or not is_dense(grad_x) or grad_x.dtype != grad_pooled.dtype:
            spread = POOL_BACKWARD.run(ctx.backend, grad_pooled, *ctx.size, ctx.bins, ctx.channels_last)
            return spread if grad_x is None else grad_x + spread, None, None
        if holders(grad_x) != _OWNED.get(frame_references(object())):
            grad_x = grad_x.clone()
        POOL_BACKWARD_ADD.run(ctx.backend, grad_x, grad_pooled, ctx.bins)
        return grad_x, None, None


def _compose_backward(grad: Tensor, height: int, width: int, bins: list[int], channels_last: bool) -> Tensor:
    """The same gradient without a native kernel: each level is spread by two small products, pixels x bins."""
    sums = reference.accumulation(grad)
    total = sums.new_zeros(grad.shape[0], grad.shape[1], height, width)
    rows, columns = (bin_averages(n, bins, sums.dtype, sums.device).split(bins, dim=1) for n in (height, width))
    for level, level_rows, level_columns in zip(reference.unpack_levels(sums, bins), rows, columns, strict=True):
        total += level_rows @ level @ level_columns.mT
    return total.to(grad.dtype).contiguous(memory_format=format_of(channels_last))


def _compose_backward_add(grad_x: Tensor, grad: Tensor, bins: list[int]) -> None:
    height, width = grad_x.shape[-2:]
    grad_x += _compose_backward(grad, height, width, bins, is_channels_last(grad_x))


def exported_pool(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Adaptive average pooling to every ``(h, w)`` of ``sizes`` as products, for other runtimes: [B, C, h, w] each."""
    (heights, rows), (widths, columns) = (
        (sides, bin_averages(n, sides, x.dtype, x.device))
        for n, sides in zip(x.shape[2:], zip(*sizes, strict=True), strict=True)
    )
    parts = zip(rows.split(heights, dim=1), (x @ columns).split(widths, dim=3), strict=True)
    return [level_rows.mT @ part for level_rows, part in parts]


def _export(x: Tensor, bins: list[int]) -> Tensor:
    return torch.cat([level.flatten(2) for level in exported_pool(x, [(k, k) for k in bins])], dim=2)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (POOL_BACKWARD.like(ctx)(grad, *ctx.shape[2:], *ctx.options, ctx.channels_last),)


def _differentiate_again(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (POOL.like(ctx)(grad, ctx.options[2]),)


def _check_levels(x: Tensor, weights: Sequence[Tensor], norms: Sequence[NormStatistics], bins: Sequence[int]) -> None:
    if x.shape[1] < 1:
        raise ValueError(f"x has no channels: its shape is {tuple(x.shape)}")
    for name, given in (("weights", weights), ("norms", norms)):
        if len(given) != len(bins):
            raise ValueError(f"{name} must hold one entry for each of {len(bins)} bins, not {len(given)}")
    for i, weight in enumerate(weights):
        check_tensor(f"weights[{i}]", weight)
    shape = (*weights[0].shape[:1], x.shape[1], 1, 1)
    for i, (weight, norm) in enumerate(zip(weights, norms, strict=True)):
        if weight.shape != shape:
            raise ValueError(f"weights[{i}] must be {list(shape)}, as x and weights[0] say, not {list(weight.shape)}")
        check_alike(f"weights[{i}]", weight, "x", x)
        check_norm(f"norms[{i}]", norm, weight)


def _behind(pool: Callable[[Tensor, list[int]], Tensor]) -> Callable[..., Tensor]:
    """The operator in PyTorch operators behind this pooling."""

    def levels(x: Tensor, bins: list[int], weight: list[Tensor], *norms: list[Any]) -> Tensor:
        statistics = [NormStatistics(*norm) for norm in zip(*norms, strict=True)]
        return reference.transform_levels(pool(x, bins), weight, statistics, bins)

    return levels


POOL = Operator(
    "pyramid_pool",
    fake=lambda x, bins: x.new_empty(*x.shape[:2], sum(k * k for k in bins)),
    definition=lambda x, bins: reference.pyramid_pool(x, bins),
    composition=lambda x, bins: reference.pyramid_pool(x, bins),
    exported=_export,
    triton="pyramid_pool:pyramid_pool_forward",
    save=save_map,
    gradient=_differentiate,
)
POOL_BACKWARD = Operator(
    "pyramid_pool_backward",
    fake=lambda grad, height, width, bins, channels_last: empty_map(grad, grad.shape[1], height, width, channels_last),
    composition=_compose_backward,
    triton="pyramid_pool:pyramid_pool_backward",
    gradient=_differentiate_again,
)
POOL_BACKWARD_ADD = Operator(
    "pyramid_pool_backward_add",
    fake=lambda grad_x, grad, bins: None,
    composition=_compose_backward_add,
    triton="pyramid_pool:pyramid_pool_backward_add",
)
LEVELS = Operator(
    "pyramid_levels",
    fake=lambda x, bins, weight, *norms: x.new_empty(x.shape[0], weight[0].shape[0], sum(k * k for k in bins)),
    definition=_behind(reference.pyramid_pool),
    composition=_behind(overload("pyramid_pool")),
    recorded=_behind(pyramid_pool),
    composed=True,
    exported=_behind(pyramid_pool),
    lower_precision=True,
)
