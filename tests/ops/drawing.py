"""What an operator's description is made of, and samples of the operators (of the losses in cross_entropy_cases.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from running import DENSE, DTYPES, Function, Sample, draw_norm, random
from torch import Tensor

from pspnet_fast import ops, reference
from pspnet_fast.reference import Bin, NormStatistics, level_sizes

PSPNET = (1, 2, 3, 6)
Arguments = dict[str, Any]  # of a `draw`
Table = dict[str, Arguments]  # by names for the tests
DEFAULT: Table = {"": {}}


@dataclass(frozen=True, eq=False)
class Description:
    """An operator, as its contract is tested.

    Attributes:
        name: of the public function; it begins the names of the tests.
        draw: ``draw(layout=, batch=, dtype=, device=, **arguments)``, a sample; arguments are its sizes and options.
        anything: strategies for arguments of any size and all options.
        gradient: whether "kernels" compute it, or the "steps" that the operator is made of, or there is "none".
        options: arguments that are tested in every dtype and layout; of no name and no arguments those of the others.
        layouts: in which ``options`` are tested.
        sizes: arguments of sizes at which kernels take other paths; ``size_dtypes`` are the dtypes that they run in.
        variants: options whose results have other shapes or are computed by other code.
        small: arguments for finite differences, and for a function that is compiled.
        large: arguments with work for several threads; ``threads`` are the numbers that give the same bits on a CPU.
        other: arguments of a second size for that function.
        inductor: whether code is generated round the compiled operator, which takes long; else the graph is tested.
        lowered: whether it runs in autocast's dtype, as a convolution does; else autocast changes nothing.
        compared: a sample of what the rule for exactness compares, for an operator whose results are not that.
        meta_strides: layouts in which results on meta tensors have the strides of others.
        run_by: the operator of the dispatcher, if its name is another.
    """

    name: str
    draw: Callable[..., Sample]
    anything: Mapping[str, st.SearchStrategy[Any]]
    gradient: str = "kernels"
    options: Table = field(default_factory=DEFAULT.copy)
    layouts: Sequence[str] = DENSE
    sizes: Table = field(default_factory=dict)
    size_dtypes: Sequence[torch.dtype] = DTYPES
    variants: Table = field(default_factory=DEFAULT.copy)
    small: Arguments = field(default_factory=dict)
    large: Arguments = field(default_factory=dict)
    threads: Sequence[int] = (1, 1, 2, 3)
    other: Arguments = field(default_factory=lambda: {"size": (10, 8), "batch": 1})
    inductor: bool = True
    lowered: bool = False
    compared: Callable[[Sample], Sample] = lambda sample: sample
    meta_strides: Sequence[str] = DENSE
    run_by: str = ""

    @property
    def operator(self) -> str:
        return self.run_by or self.name

    @property
    def with_gradient(self) -> bool:
        """Whether a gradient belongs to what is tested of the kernels."""
        return self.gradient == "kernels"


def both(name: str, **options: Any) -> tuple[Function, Function]:
    """The operator and its definition, with these options."""
    return functools.partial(getattr(ops, name), **options), functools.partial(getattr(reference, name), **options)


def cells(bins: Sequence[Bin]) -> int:
    return sum(height * width for height, width in level_sizes(bins))


# ---- The pyramid ----------------------------------------------------------------------------------------------------


def draw_pool(
    size: tuple[int, int] = (7, 9), bins: Sequence[int] = PSPNET, channels: int = 3, layout: str = "nchw",
    batch: int = 2, **kwargs: Any,
) -> Sample:  # fmt: skip
    return Sample(*both("pyramid_pool", bins=bins), [random(batch, channels, *size, layout=layout, **kwargs)])


def draw_through(bins: Sequence[int] = PSPNET, **kwargs: Any) -> Sample:
    """Of a consumer of both results that makes new gradients for them."""

    def consume(x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin() * pooled[..., :1, None], pooled.cos()

    return Sample(
        lambda x: consume(*ops.pyramid_pool_through(x, bins)),
        lambda x: consume(x, reference.pyramid_pool(x, bins)),
        draw_pool(**kwargs).inputs,
    )


def placed(norm: NormStatistics, device: torch.device, dtype: torch.dtype | None = None) -> NormStatistics:
    return NormStatistics(*(t.to(device, dtype) for t in norm[:4]), norm.eps)


def draw_levels(
    size: tuple[int, int] = (7, 9), bins: Sequence[int] = PSPNET, channels: int = 5, width: int = 4,
    statistics: torch.dtype | None = None, layout: str = "nchw", batch: int = 2, **kwargs: Any,
) -> Sample:  # fmt: skip
    weights = [random(width, channels, 1, 1, **kwargs) / channels**0.5 for _ in bins]
    norms = [draw_norm(width, **{**kwargs, "dtype": statistics or kwargs.get("dtype", torch.float32)}) for _ in bins]

    def fused(x: Tensor, *weights: Tensor) -> Tensor:
        return ops.pyramid_levels(x, weights, [placed(norm, x.device) for norm in norms], bins)

    def definition(x: Tensor, *weights: Tensor) -> Tensor:
        return reference.pyramid_levels(x, weights, [placed(norm, x.device, x.dtype) for norm in norms], bins)

    return Sample(fused, definition, [random(batch, channels, *size, layout=layout, **kwargs), *weights])


def draw_concat(
    size: tuple[int, int] = (7, 10), bins: Sequence[int] = PSPNET, channels: int = 3, level_channels: int = 2,
    align_corners: bool = True, x_first: bool = True, layout: str = "nchw", batch: int = 2, **kwargs: Any,
) -> Sample:  # fmt: skip
    x = random(batch, channels, *size, layout=layout, **kwargs)
    levels = random(batch, level_channels, cells(bins), **kwargs)
    return Sample(*both("pyramid_concat", bins=bins, align_corners=align_corners, x_first=x_first), [x, levels])


def draw_conv(
    size: tuple[int, int] = (7, 10), bins: Sequence[Bin] = PSPNET, kernel: tuple[int, int] = (3, 3), channels: int = 5,
    level_channels: int = 3, outputs: int = 4, biased: bool = True, align_corners: bool = True, x_first: bool = True,
    layout: str = "nchw", batch: int = 2, **kwargs: Any,
) -> Sample:  # fmt: skip
    """The weight is scaled as an initialised layer's would be."""
    x = random(batch, channels, *size, layout=layout, **kwargs)
    levels = random(batch, level_channels, cells(bins), **kwargs)
    all_channels = channels + len(bins) * level_channels
    of_weight = "channels_last" if layout == "channels_last" else "nchw"
    weight = random(outputs, all_channels, *kernel, layout=of_weight, **kwargs)
    weight = weight / (all_channels * kernel[0] * kernel[1]) ** 0.5
    bias = [random(outputs, **kwargs)] if biased else []
    functions = both("pyramid_conv", bins=bins, align_corners=align_corners, x_first=x_first)
    return Sample(*functions, [x, levels, weight, *bias])


def draw_norm_relu(
    bins: Sequence[Bin] = PSPNET, align_corners: bool = True, x_first: bool = True,
    statistics: torch.dtype | None = None, **kwargs: Any,
) -> Sample:  # fmt: skip
    inputs = draw_conv(bins=bins, **kwargs).inputs
    norm = draw_norm(inputs[2].shape[0], statistics or inputs[0].dtype, inputs[0].device)
    fused, definition = both("pyramid_conv_norm_relu", bins=bins, align_corners=align_corners, x_first=x_first)
    return Sample(
        lambda x, levels, weight, *bias: fused(x, levels, weight, placed(norm, x.device), *bias),
        lambda x, levels, weight, *bias: definition(x, levels, weight, placed(norm, x.device, x.dtype), *bias),
        inputs,
    )


def draw_add(
    size: tuple[int, int] = (8, 12), bins: Sequence[Bin] = ((4, 6), (2, 3), 1), channels: int = 3, based: bool = True,
    align_corners: bool = True, layout: str = "nchw", batch: int = 2, **kwargs: Any,
) -> Sample:  # fmt: skip
    options: dict[str, Any] = {"bins": bins, "align_corners": align_corners, "channels_last": layout == "channels_last"}
    inputs = [random(batch, channels, cells(bins), **kwargs), random(batch, channels, *size, layout=layout, **kwargs)]
    functions = both("upsample_add", size=None if based else size, **options)
    return Sample(*functions, inputs if based else inputs[:1])


# ---- The logits -----------------------------------------------------------------------------------------------------


def draw_argmax(
    low: tuple[int, int] = (4, 5), size: tuple[int, int] = (25, 33), classes: int = 7, align_corners: bool = True,
    layout: str = "nchw", batch: int = 2, **kwargs: Any,
) -> Sample:  # fmt: skip
    functions = both("upsample_argmax", size=size, align_corners=align_corners)
    return Sample(*functions, [random(batch, classes, *low, layout=layout, **kwargs)])


def chosen_logits(sample: Sample) -> Sample:
    """In place of labels, which rounding may exchange where two logits are nearly equal, their logits in float64."""
    (logits,) = sample.inputs
    align_corners = sample.fused.keywords["align_corners"]

    def at(labels: Tensor, z: Tensor) -> Tensor:
        up = F.interpolate(z.double(), labels.shape[1:], mode="bilinear", align_corners=align_corners)
        return up.gather(1, labels.long().unsqueeze(1))

    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # in which half logits are interpolated
    return Sample(lambda z: at(sample.fused(logits), z), lambda z: at(sample.definition(z), z), [wide])


def draw_taps(n: int, positions: int, device: torch.device | str) -> ops.AxisTaps:
    """``n`` reads of two of ``positions``, in any order; some of weight 0."""
    weight = torch.rand(n, 2, dtype=torch.float64) * (torch.rand(n, 2) < 0.7)
    return ops.AxisTaps(torch.randint(0, positions, (n, 2), dtype=torch.int32).to(device), weight.to(device))


def draw_softmax_add(
    low: tuple[int, int] = (4, 5), size: tuple[int, int] = (13, 33), reads: Sequence[int | None] = (None, None),
    classes: int = 7, scale: float = 3, layout: str = "nchw", batch: int = 2, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", **options: Any,
) -> Sample:  # fmt: skip
    """With taps for ``reads`` rows and columns. What is added is a result, too, as it may be small beside the total."""
    taps = (None if n is None else draw_taps(n, positions, device) for n, positions in zip(reads, size, strict=True))
    options |= dict(zip(("rows", "columns"), taps, strict=True))
    logits = scale * random(batch, classes, *low, layout=layout, dtype=dtype, device=device)
    shape = [n or positions for n, positions in zip(reads, size, strict=True)]
    total = random(batch, classes, *shape, dtype=torch.promote_types(dtype, torch.float32), device=device)

    def of_a_copy(function: Function) -> Function:
        def added(total: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
            result = function(total.clone(), logits, size, **options)
            return result, result - total

        return added

    return Sample(of_a_copy(ops.upsample_softmax_add), of_a_copy(reference.upsample_softmax_add), [total, logits])
