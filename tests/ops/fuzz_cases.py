"""The cases of fuzz.py: a random call of a public operator for every seed and number."""

from __future__ import annotations

import math
import random as stdlib_random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from running import LAYOUTS, as_tuple
from torch import Tensor

from pspnet_fast import reference
from pspnet_fast.reference import AxisTaps, Bin, NormStatistics

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
BINS = ((1, 2, 3, 6), (1,), (2, 5), (3, 3, 1), (7,), (6, 3, 2, 1))
SIZES = (*BINS, ((9, 4), (5, 2), (1, 1)), ((3, 13), 6), ((16, 16),))


@dataclass
class Case:
    """One call: ``function(*inputs, **options)`` of :mod:`pspnet_fast.ops` and of :mod:`pspnet_fast.reference`."""

    name: str
    inputs: list[Tensor]  # differentiable, all of one dtype
    options: dict[str, Any] = field(default_factory=dict)
    after: Callable[..., Any] = lambda result: result  # picks the differentiable results
    special: bool = False
    mode: str = "train"

    def run(self, module: Any, inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        options = {k: _cast(v, dtype) if dtype else v for k, v in self.options.items()}
        written = [options.pop("total").clone()] if "total" in options else []
        return as_tuple(self.after(getattr(module, self.name)(*written, *inputs, **options)))

    def __str__(self) -> str:
        shown = {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        shapes = [(tuple(t.shape), t.stride()) for t in self.inputs]
        return f"{self.name} {self.inputs[0].dtype} {shapes} {shown} special={self.special} mode={self.mode}"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, NormStatistics):
        return NormStatistics(*(t.to(dtype) for t in value[:4]), value.eps)
    if isinstance(value, AxisTaps):
        return AxisTaps(value.position, value.weight.to(dtype))
    if isinstance(value, list):
        return [_cast(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class Draw:
    """The random choices of one case."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = stdlib_random.Random(f"{seed}:{number}")
        torch.manual_seed(self.rng.getrandbits(32))
        self.dtype = self.rng.choice(DTYPES)
        self.scale = self.rng.choice((1.0, 1.0, 1e-3, 20.0, 100.0))
        self.special = self.rng.random() < 0.15

    def parameter(self, *shape: int) -> Tensor:
        """Finite numbers: with an infinite weight, who upsamples first decides what is infinite and what NaN."""
        return self.map(*shape, scale=1.0, special=False)

    def map(self, *shape: int, scale: float | None = None, special: bool | None = None) -> Tensor:
        x = torch.randn(shape, dtype=torch.float64) * (self.scale if scale is None else scale)
        if (self.special if special is None else special) and x.numel():
            flat = x.view(-1)
            for _ in range(self.rng.randint(1, 3)):
                flat[self.rng.randrange(x.numel())] = self.rng.choice((math.inf, -math.inf, math.nan))
        x = x.to(self.dtype)
        return LAYOUTS[self.rng.choice(list(LAYOUTS))](x) if x.dim() == 4 and x.shape[3] else x

    def size(self, most: int = 17) -> tuple[int, int]:
        return self.rng.randint(1, most), self.rng.randint(1, most)

    def batch(self) -> int:
        return self.rng.choice((1, 1, 2, 3, 0))

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def norm(self, channels: int) -> NormStatistics:
        mean, gamma, beta = (torch.randn(channels).to(self.dtype) for _ in range(3))
        return NormStatistics(mean, (0.5 + torch.rand(channels)).to(self.dtype), gamma, beta, 1e-5)


def draw(seed: int, number: int) -> Case:
    """The case of this number."""
    d = Draw(seed, number)
    drawn = (_pool, _concat, _conv, _conv, _norm_relu, _levels, _add, _argmax, _softmax, _loss, _loss, _dual)
    case = d.rng.choice(drawn)(d)
    case.special = d.special
    if case.name in ("upsample_argmax", "upsample_softmax_add", "pyramid_levels", "pyramid_conv_norm_relu"):
        case.mode = d.rng.choice(("no_grad", "inference"))
    else:
        case.mode = d.rng.choice(("train", "train", "train", "no_grad", "inference"))
    return case


def _pool(d: Draw) -> Case:
    return Case("pyramid_pool", [d.map(d.batch(), d.rng.randint(1, 9), *d.size())], {"bins": d.rng.choice(BINS)})


def _pyramid(d: Draw, choices: Sequence[Sequence[Bin]]) -> tuple[list[Tensor], dict[str, Any]]:
    bins = d.rng.choice(choices)
    batch = d.batch()
    cells = sum(h * w for h, w in reference.level_sizes(bins))
    inputs = [d.map(batch, d.rng.randint(1, 7), *d.size()), d.map(batch, d.rng.randint(1, 5), cells)]
    return inputs, {"bins": bins, "align_corners": d.flag(), "x_first": d.flag()}


def _concat(d: Draw) -> Case:
    return Case("pyramid_concat", *_pyramid(d, BINS))


def _conv(d: Draw) -> Case:
    (x, levels), options = _pyramid(d, SIZES)
    channels = x.shape[1] + len(options["bins"]) * levels.shape[1]
    kernel = d.rng.choice(((1, 1), (3, 3), (3, 3), (5, 3), (1, 3)))
    outputs = d.rng.randint(1, 9)
    inputs = [x, levels, d.parameter(outputs, channels, *kernel)]
    return Case("pyramid_conv", [*inputs, d.parameter(outputs)] if d.flag() else inputs, options)


def _norm_relu(d: Draw) -> Case:
    case = _conv(d)
    case.name, case.inputs = "pyramid_conv_norm_relu", case.inputs[:3]
    case.options["norm"] = d.norm(case.inputs[2].shape[0])
    return case


def _levels(d: Draw) -> Case:
    bins, channels, outputs = d.rng.choice(BINS), d.rng.randint(1, 9), d.rng.randint(1, 5)
    options = {
        "weights": [d.parameter(outputs, channels, 1, 1) for _ in bins],
        "norms": [d.norm(outputs) for _ in bins],
        "bins": bins,
    }
    return Case("pyramid_levels", [d.map(d.batch(), channels, *d.size())], options)


def _add(d: Draw) -> Case:
    (base, levels), options = _pyramid(d, SIZES)
    base = d.map(levels.shape[0], levels.shape[1], *base.shape[2:])
    del options["x_first"]
    inputs = [levels, base] if d.flag() else [levels]
    return Case("upsample_add", inputs, {**options, "size": tuple(base.shape[2:]), "channels_last": d.flag()})


def _argmax(d: Draw) -> Case:
    logits = d.map(d.batch(), d.rng.randint(1, 25), *d.size(7))
    size = tuple(logits.shape[2:]) if d.rng.random() < 0.2 else d.size(40)
    dtype = d.rng.choice((torch.int64, torch.int32, torch.uint8))
    return Case("upsample_argmax", [logits], {"size": size, "align_corners": d.flag(), "dtype": dtype})


def _softmax(d: Draw) -> Case:
    logits = d.map(d.batch(), d.rng.randint(1, 25), *d.size(7))
    size, shape = d.size(40), []
    options: dict[str, Any] = {
        "size": size,
        "align_corners": d.flag(),
        "flip": d.flag(),
        "weight": d.rng.choice((1.0, 0.1)),
    }
    for name, n in zip(("rows", "columns"), size, strict=True):
        shape.append(n)
        if not d.special and d.flag():
            shape[-1] = d.rng.randint(1, 40)
            index = torch.randint(0, n, (shape[-1], 2), dtype=torch.int32)
            options[name] = AxisTaps(index, torch.rand(shape[-1], 2) * (torch.rand(shape[-1], 2) < 0.8))
    total = torch.randn(*logits.shape[:2], *shape)
    options["total"] = LAYOUTS[d.rng.choice(list(LAYOUTS))](total.double() if d.dtype == torch.float64 else total)
    return Case("upsample_softmax_add", [logits], options)


def _target(d: Draw, logits: Tensor, options: dict[str, Any]) -> Tensor:
    """Labels: mostly the largest logits' (as after training), or anything; some ignored."""
    batch, classes = logits.shape[:2]
    size = tuple(logits.shape[2:]) if d.rng.random() < 0.1 else d.size(40)
    target = torch.randint(0, classes, (batch, *size))
    if d.flag() and batch:
        best = reference.upsample_argmax(logits, size, align_corners=options["align_corners"])
        target = torch.where(torch.rand(target.shape) < 0.9, best, target)
    ignored = torch.rand(target.shape) < d.rng.choice((0.0, 0.2, 1.0))
    dtype = d.rng.choice((torch.int64, torch.int32, torch.uint8))
    if dtype != torch.uint8 or 0 <= options["ignore_index"] < 256:
        target[ignored] = options["ignore_index"]
    return target.to(dtype)


def _loss_options(d: Draw, logits: Tensor) -> dict[str, Any]:
    options: dict[str, Any] = {
        "ignore_index": d.rng.choice((255, 255, -1, -100, 0)),
        "label_smoothing": d.rng.choice((0.0, 0.0, 0.1, 1.0)),
        "reduction": d.rng.choice(("mean", "mean", "sum", "none")),
        "denominator": d.rng.choice(("valid", "valid", "all", 7.5)),
        "empty": d.rng.choice(("nan", "zero")),
        "align_corners": d.flag(),
    }
    options["target"] = _target(d, logits, options)
    if d.rng.random() < 0.3:
        options["weight"] = 0.25 + torch.rand(logits.shape[1])
    if d.rng.random() < 0.3:
        options["pixel_weight"] = torch.rand(options["target"].shape) * 2
    return options


def _loss(d: Draw) -> Case:
    logits = d.map(d.batch(), d.rng.choice((1, 2, 3, 19, 25)), *d.size(7))
    return Case("upsample_cross_entropy", [logits], _loss_options(d, logits))


def _dual(d: Draw) -> Case:
    main = d.map(d.batch(), d.rng.choice((2, 3, 19)), *d.size(7))
    aux = d.map(*main.shape[:2], *d.size(7))
    options = _loss_options(d, main) | {"aux_weight": d.rng.choice((0.4, 1.0, 0.0))}
    return Case("dual_cross_entropy", [main, aux], options, after=lambda loss: (loss.loss, loss.main, loss.aux))
