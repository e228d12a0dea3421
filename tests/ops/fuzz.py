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
import sys
from collections.abc import Sequence
from typing import Any

import torch
from exactness import assert_as_exact_as_stock
from fuzz_cases import Case, draw
from torch import Tensor

from pspnet_fast import ops, reference


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
        if case.name == "upsample_softmax_add":
            as_one |= _at_a_node(case.inputs[0].shape[2:], actual.shape[2:], case.options)
        if case.name in ("pyramid_concat", "upsample_add") and what == "result 0":
            for size in reference.level_sizes(case.options["bins"]):
                as_one |= _at_a_node(size, actual.shape[2:], case.options)
        assert as_one[other].all(), f"{what}: infinite or NaN in other places than stock"
    if case.name.startswith("pyramid_conv") and case.special:
        finite &= actual.isfinite()
    if case.special and exact.dim() == 3 and case.name.endswith("cross_entropy"):
        for logits in case.inputs:
            finite &= ~_at_a_node(logits.shape[2:], exact.shape[1:], case.options)
    if case.special and case.name == "upsample_softmax_add":
        finite &= ~_at_a_node(case.inputs[0].shape[2:], exact.shape[2:], case.options)
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
    if options.get("flip"):
        near[1] = near[1].flip(0)
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
