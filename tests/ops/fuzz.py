"""Random calls of every public operator against its definition in float64.

    python tests/ops/fuzz.py --count 10000 --seed 1

A case is drawn from its number alone: operator, shapes, dtype, layouts, options, values (ordinary, large, nearly
equal, with infinite and NaN numbers), and mode (training, no_grad, inference_mode). Results and gradients must hold to
the rule of exactness.py; labels must be those of a largest logit; what is infinite or NaN must be so where the stock
operators' results are; and a second run must give the same bits.
"""

from __future__ import annotations

import argparse
import math
import random as stdlib_random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from exactness import assert_as_exact_as_stock
from running import LAYOUTS, as_tuple
from torch import Tensor

from pspnet_fast import ops, reference
from pspnet_fast.reference import NormStatistics

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
BINS = ((1, 2, 3, 6), (1,), (2, 5), (3, 3, 1), (7,), (6, 3, 2, 1))


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
        return as_tuple(self.after(getattr(module, self.name)(*inputs, **options)))

    def __str__(self) -> str:
        shown = {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        shapes = [(tuple(t.shape), t.stride()) for t in self.inputs]
        return f"{self.name} {self.inputs[0].dtype} {shapes} {shown} special={self.special} mode={self.mode}"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, NormStatistics):
        return NormStatistics(*(t.to(dtype) for t in value[:4]), value.eps)
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
    case = d.rng.choice((_pool, _concat, _conv, _conv, _norm_relu, _levels, _argmax, _loss, _loss, _dual))(d)
    case.special = d.special
    if case.name in ("upsample_argmax", "pyramid_levels", "pyramid_conv_norm_relu"):
        case.mode = d.rng.choice(("no_grad", "inference"))
    else:
        case.mode = d.rng.choice(("train", "train", "train", "no_grad", "inference"))
    return case


def _pool(d: Draw) -> Case:
    return Case("pyramid_pool", [d.map(d.batch(), d.rng.randint(1, 9), *d.size())], {"bins": d.rng.choice(BINS)})


def _pyramid(d: Draw) -> tuple[list[Tensor], dict[str, Any]]:
    bins = d.rng.choice(BINS)
    batch = d.batch()
    inputs = [d.map(batch, d.rng.randint(1, 7), *d.size()), d.map(batch, d.rng.randint(1, 5), sum(k * k for k in bins))]
    return inputs, {"bins": bins, "align_corners": d.flag(), "x_first": d.flag()}


def _concat(d: Draw) -> Case:
    return Case("pyramid_concat", *_pyramid(d))


def _conv(d: Draw) -> Case:
    (x, levels), options = _pyramid(d)
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


def _argmax(d: Draw) -> Case:
    logits = d.map(d.batch(), d.rng.randint(1, 25), *d.size(7))
    size = tuple(logits.shape[2:]) if d.rng.random() < 0.2 else d.size(40)
    dtype = d.rng.choice((torch.int64, torch.int32, torch.uint8))
    return Case("upsample_argmax", [logits], {"size": size, "align_corners": d.flag(), "dtype": dtype})


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


def check(case: Case) -> None:
    """Raises AssertionError where the operator does not give what its definition does."""
    if case.name == "upsample_argmax":
        return _check_labels(case)
    if case.mode == "train":
        actual, again = (_differentiate(case, ops, case.inputs) for _ in range(2))
        stock = _differentiate(case, reference, case.inputs)
        exact = _differentiate(case, reference, [t.double() for t in case.inputs], torch.float64)
    else:
        with torch.inference_mode() if case.mode == "inference" else torch.no_grad():
            actual, again = (case.run(ops, case.inputs) for _ in range(2))
            stock = case.run(reference, case.inputs)
            exact = case.run(reference, [t.double() for t in case.inputs], torch.float64)
    torch.testing.assert_close(again, actual, rtol=0, atol=0, equal_nan=True, msg="two runs differ")
    for i, (a, s, e) in enumerate(zip(actual, stock, exact, strict=True)):
        _check_result(case, a, s, e, f"result {i}")


def _check_result(case: Case, actual: Tensor, stock: Tensor, exact: Tensor, what: str) -> None:
    finite = stock.isfinite() & exact.isfinite()
    other = ~finite
    is_gradient = exact.dim() == 4 and case.name.endswith("cross_entropy")
    if other.any() and case.name.startswith("pyramid_conv"):
        # Sums over channels and pixels of infinite numbers are infinite or NaN by the order of their terms, which ReLU
        # then makes 0 or NaN; and an infinite cell reaches taps of the weight's gradient that do not read it.
        ordered = case.name == "pyramid_conv" and what != "result 3"
        assert not (ordered and actual[~stock.isfinite() & ~exact.isfinite()].isfinite().any()), (
            f"{what}: finite where it must not be"
        )
    elif other.any() and not is_gradient:  # a pixel's NaN times a weight of 0 reaches stock's gradient and not ours
        # By its rounding an interpolation weight is exactly 0 in one dtype and nearly 0 in another: 0 times an infinite
        # number is NaN. Half precision overflows where float64 does not.
        as_one = _same(actual, stock) | _same(actual, exact)
        if case.name.endswith("cross_entropy"):  # whose sums are infinite or NaN by the order of their terms
            as_one |= ~actual.isfinite() & ~stock.isfinite()
        if case.name == "pyramid_concat" and what == "result 0":
            for k in case.options["bins"]:
                as_one |= _at_a_node((k, k), actual.shape[2:], case.options)
        assert as_one[other].all(), f"{what}: infinite or NaN in other places than stock"
    if case.name.startswith("pyramid_conv") and case.special:
        finite &= actual.isfinite()
    kept = [torch.where(finite, t, 0) for t in (actual, stock, exact)]
    if is_gradient:
        # Probabilities less labels, summed over pixels, may cancel to nothing: what remains is their rounding.
        rounding = 2 * torch.finfo(torch.float32).eps * _pixels_a_node(case, exact)
        kept[0] = torch.where((kept[0].double() - kept[2]).abs() <= rounding, kept[2].to(kept[0].dtype), kept[0])
    assert_as_exact_as_stock(*kept, case.inputs[0].dtype, what)


def _pixels_a_node(case: Case, gradient: Tensor) -> float:
    """About the largest sum of the pixels' weights in the gradient of one low-resolution logit."""
    target = case.options["target"]
    valid = (target != case.options["ignore_index"]).sum().item()
    divisor = {"valid": max(valid, 1), "all": max(target.numel(), 1)}.get(case.options["denominator"], 7.5)
    pixels = 4 * math.prod(target.shape[1:]) / math.prod(gradient.shape[2:])
    return pixels / divisor if case.options["reduction"] == "mean" else pixels


def _same(actual: Tensor, expected: Tensor) -> Tensor:
    """Where both are NaN, the same infinity, or nearly the same number."""
    return torch.isclose(actual.double(), expected.double(), rtol=1e-2, atol=1e-2, equal_nan=True)


def _differentiate(
    case: Case, module: Any, inputs: Sequence[Tensor], dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    results = case.run(module, leaves, dtype)
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(inputs[0].dtype) for r in results]
    gradients = torch.autograd.grad(results, leaves, [u.to(r.dtype) for u, r in zip(upstream, results, strict=True)])
    return *(r.detach() for r in results), *gradients


def _check_labels(case: Case) -> None:
    (logits,), size = case.inputs, case.options["size"]
    labels = case.run(ops, [logits])[0]
    torch.testing.assert_close(case.run(ops, [logits])[0], labels, rtol=0, atol=0, msg="two runs differ")
    stock = case.run(reference, [logits])[0]
    assert labels.dtype == stock.dtype
    wrong = labels != stock
    if not wrong.any():
        return
    # By rounding, a node that a pixel nearly meets has a weight of 0 or none: 0 times an infinite number is NaN.
    right = torch.zeros_like(wrong)
    if case.special:
        right = right | _at_a_node(logits.shape[2:], size, case.options)
    for exact in (logits.float(), logits.double()):
        up = torch.nn.functional.interpolate(exact, size, mode="bilinear", align_corners=case.options["align_corners"])
        best, chosen = up.amax(1), up.gather(1, labels.long().unsqueeze(1)).squeeze(1)
        near = best - chosen <= 1e-6 * up.nan_to_num(0, 0, 0).abs().amax(1)
        right |= near | (best == chosen) | (best.isnan() & chosen.isnan())
    assert right[wrong].all(), "a label is not that of a largest logit"


def _at_a_node(low: Sequence[int], size: Sequence[int], options: dict[str, Any]) -> Tensor:
    """bool [1, H, W]: the pixels that lie, but for rounding, in a row or column of the low-resolution map."""
    near = []
    for k, n in zip(low, size, strict=True):
        pixel = torch.arange(n, dtype=torch.float64)
        source = pixel * ((k - 1) / max(n - 1, 1)) if options["align_corners"] else (pixel + 0.5) * (k / n) - 0.5
        near.append((source - source.round()).abs() < 1e-5)
    return (near[0][:, None] | near[1])[None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong = 0
    for number in range(options.first, options.first + options.count):
        case = draw(options.seed, number)
        try:
            check(case)
        except Exception as error:
            wrong += 1
            print(f"case {number}: {case}\n  {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
    print(f"{options.count} cases from {options.first}, seed {options.seed}: {wrong} wrong")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
