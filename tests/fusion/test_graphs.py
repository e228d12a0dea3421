"""Random graphs of upsampling and what stands around it in segmentation models, built twice from one seed.

``python tests/fusion/test_graphs.py --count 5000`` compares stock and fused; the test does so for a hundred.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pspnet_fast
from pspnet_fast.fusion import cost
from pspnet_fast.layout import same_layout

SIZES = [(3, 4), (4, 4), (6, 8), (8, 8), (12, 16), (12, 11)]


class Graph:
    """One random graph; ``run`` gives outputs, the gradients of all leaves, and what hooks saw."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.leaves: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.labels: list[tuple[Tensor, Tensor]] = []  # with the map whose largest values they point to
        self.log: list[str] = []
        self.batch = self.random.choice([1, 2])

    def leaf(self, *shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        if len(shape) == 4 and self.random.random() < 0.2:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        self.leaves.append(tensor.requires_grad_(self.random.random() < 0.9))
        return tensor

    def run(self) -> None:
        pool = []
        for _ in range(self.random.randint(1, 3)):
            leaf = self.leaf(self.batch, self.random.randint(1, 5), *self.random.choice(SIZES[:4]))
            pool.append(leaf * 1.0 if self.random.random() < 0.8 else leaf)
        # Most graphs look like a head: maps are upsampled to one size first.
        full = self.random.choice(SIZES[3:])
        pool += [self.upsample(x, full) for x in list(pool)]
        for _ in range(self.random.randint(2, 9)):
            step = self.random.choice(STEPS)
            result = step(self, pool)
            self.log.append(step.__name__)
            pool += result
        self.outputs += [x for x in pool[-2:] if x.is_floating_point()]
        total = sum((x * torch.randn(x.shape, generator=self.generator).to(x)).sum().double() for x in self.outputs)
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()

    def pick(self, pool: list[Tensor]) -> Tensor:
        return self.random.choice(pool[-4:])

    def upsample(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        align = self.random.random() < 0.5
        if self.random.random() < 0.3 and min(size) > 1:
            factor = self.random.choice([2, 2.0, 1.5, (2, 3)])
            return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align)
        return F.interpolate(x, size, mode=self.random.choice(["bilinear"] * 9 + ["bicubic"]), align_corners=align)


def interpolate(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    return [g.upsample(g.pick(pool), g.random.choice(SIZES))]


def concatenate(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    first = g.pick(pool)
    same = [x for x in pool if x.shape[2:] == first.shape[2:] and x.dtype == first.dtype]
    return [
        torch.cat(
            [first, *g.random.sample(same, min(len(same), g.random.randint(1, 3)))], dim=g.random.choice([1, 1, 1, -3])
        )
    ]


def convolve(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool)
    kernel = g.random.choice([1, 1, 3, 3, 2])
    options = {"padding": kernel // 2}
    if g.random.random() < 0.1:
        options = g.random.choice([{"padding": 0}, {"stride": 2}, {"padding": 1, "dilation": 1}])
    weight, bias = g.leaf(g.random.choice([1, 3, 8]), x.shape[1], kernel, kernel), None
    if g.random.random() < 0.5:
        bias = g.leaf(weight.shape[0])
    return [F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), **options)]


def add(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    first = g.pick(pool)
    other = g.random.choice([x for x in pool if x.shape == first.shape])
    return [first + other if g.random.random() < 0.7 else torch.add(first, other, alpha=2)]


def cut(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool)
    start = g.random.randrange(x.shape[1])
    stop = g.random.randint(start + 1, x.shape[1])
    how = g.random.randrange(5)
    if how == 0:
        return list(x.chunk(2, dim=1))
    if how == 1:
        return list(x.split([start, x.shape[1] - start], dim=1))[1:]
    if how == 2:
        return [x.narrow(1, start, stop - start)]
    return [x[:, start:stop] if how == 3 else x[:, start:stop, :, : max(1, x.shape[3] // 2)]]


WRITES = [
    lambda x: x.__setitem__((slice(None), 0), 0.5),
    lambda x: x.mul_(0.5),
    lambda x: F.relu(x, inplace=True),
    lambda x: x[:, :1].add_(1),
    lambda x: x.detach().view(-1)[::3].fill_(1),
    lambda x: torch.add(x.detach(), 1, out=x.detach()),
]


def write(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool) if g.random.random() < 0.7 else g.random.choice(pool)
    if x.is_leaf and x.requires_grad:
        return []
    how = g.random.randrange(len(WRITES))
    result = WRITES[how](x)
    return [result] if how == 2 else []


REARRANGED = [
    lambda x: x.detach(),
    lambda x: x.clone(),
    lambda x: x.permute(0, 1, 3, 2).contiguous(),
    lambda x: x.to(torch.float32).to(torch.float64),
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x.view(x.shape),
    lambda x: x.reshape(x.shape[0], x.shape[1], -1).view(x.shape),
]


def rearrange(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool)
    return [g.random.choice(REARRANGED)(x)]


def softmax(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    return [g.pick(pool).softmax(1) if g.random.random() < 0.5 else F.log_softmax(g.pick(pool), dim=1)]


def predict(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool)
    how = g.random.randrange(5)
    keepdim = g.random.random() < 0.5
    if how == 0:
        labels = x.argmax(1, keepdim=keepdim)
    elif how == 1:
        values, labels = x.max(1, keepdim=keepdim)
        g.outputs.append(values)
    elif how == 2:
        values, labels = x.topk(1, dim=1)
        g.outputs.append(values)
        keepdim = True
    elif how == 3:
        with torch.no_grad():
            labels = x.softmax(1).argmax(1, keepdim=keepdim)
    else:
        with torch.no_grad():
            g.outputs.append(x.mean())
        return []
    g.labels.append((labels if keepdim else labels.unsqueeze(1), x.detach().clone()))
    return []


def loss(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool)
    target = torch.randint(0, x.shape[1], (x.shape[0], *x.shape[2:]), generator=g.generator)
    target[torch.rand(target.shape, generator=g.generator) < 0.2] = -100
    target[0, 0, 0] = 0
    options = {"reduction": g.random.choice(["none", "sum", "mean"])}
    if g.random.random() < 0.3:
        options["weight"] = torch.rand(x.shape[1], generator=g.generator).to(x.dtype) + 0.1
    if g.random.random() < 0.3:
        g.outputs.append(F.nll_loss(F.log_softmax(x, 1), target, **options))
    else:
        options["label_smoothing"] = g.random.choice([0.0, 0.0, 0.1])
        g.outputs.append(F.cross_entropy(x, target, **options))
    return []


def hook(g: Graph, pool: list[Tensor]) -> list[Tensor]:
    x = g.pick(pool)
    # Reading grad_fn first: PyTorch crashes in register_hook of a view whose base was written to.
    if x.requires_grad and (x.is_leaf or x.grad_fn is not None):
        if g.random.random() < 0.5:
            x.register_hook(lambda grad: None if grad is None else g.seen.append(grad.detach().clone()))
        else:
            x.register_hook(lambda grad: None if grad is None else grad * 2)
    return []


STEPS: list[Callable[[Graph, list[Tensor]], list[Tensor]]] = [
    *(interpolate, concatenate, concatenate, convolve, convolve, convolve, add, cut, write, rearrange),
    *(softmax, predict, predict, loss, loss, loss, hook),
]


def compare(seed: int) -> str | None:
    """None if both agree, else what differs; "skipped" where stock PyTorch refuses the graph."""
    stock, fused = Graph(seed), Graph(seed)
    try:
        stock.run()
    except RuntimeError as error:
        if "inplace operation" in str(error):
            return "skipped"  # stock operators save what the fused ones do not need
        with pspnet_fast.fuse():
            try:
                fused.run()
            except RuntimeError as other:
                return None if str(error) == str(other) else f"{error!r} and {other!r}"
        return f"{error!r}, and the fused graph runs"
    with pspnet_fast.fuse():
        fused.run()
    if stock.log != fused.log:
        return f"{stock.log} {fused.log}"
    pairs = [
        *zip(stock.outputs, fused.outputs, strict=True),
        *zip(stock.seen, fused.seen, strict=True),
        *zip([x.grad for x in stock.leaves], [x.grad for x in fused.leaves], strict=True),
        *zip(stock.leaves, fused.leaves, strict=True),
    ]
    for (labels, x), (other, _) in zip(stock.labels, fused.labels, strict=True):
        # Classes that tie may be exchanged by rounding.
        if labels.stride() != other.stride() or not torch.allclose(x.gather(1, labels), x.gather(1, other), 1e-6, 1e-9):
            return f"labels: {stock.log}"
    for i, (a, b) in enumerate(pairs):
        if (a is None) != (b is None):
            return f"result {i}: {type(a).__name__} and {type(b).__name__} {stock.log}"
        if a is None or b is None:
            continue
        if a.dtype != b.dtype or (i < len(stock.outputs) and not same_layout(a, b.stride())):
            return f"result {i}: {a.stride()} {a.dtype} and {b.stride()} {b.dtype} {stock.log}"
        a, b = a.detach(), b.detach()
        tolerance = 1e-9 if "rearrange" not in stock.log else 1e-3  # which casts to float32
        if not torch.allclose(a, b + 0, rtol=tolerance, atol=tolerance * float(a.abs().max() + 1), equal_nan=True):
            return f"result {i} of {len(stock.outputs)} outputs: {stock.log}"
    return None


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_random_graphs_equal_stock(first: int) -> None:
    found = {seed: compare(seed) for seed in range(first, first + 10)}
    assert {seed: what for seed, what in found.items() if what not in (None, "skipped")} == {}
    assert list(found.values()).count("skipped") < 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every seed before its graph runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cost._NODE = -math.inf  # fuse small maps, too
    skipped, wrong = 0, 0
    for seed in range(options.seed, options.seed + options.count):
        if options.verbose:
            print(seed, end=" ", flush=True)
        try:
            found = compare(seed)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        skipped += found == "skipped"
        if found not in (None, "skipped"):
            wrong += 1
            print(f"seed {seed}: {found}", flush=True)
    print(f"{options.count} graphs, {wrong} differ, {skipped} that stock PyTorch refuses")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
