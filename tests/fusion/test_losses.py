"""Every option of the losses, the forms that libraries write them in, and what is left to the stock operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pairs import assert_same, deferred, is_built, low_and_target, upsample
from torch import nn

WEIGHT = torch.tensor([0.5, 1.0, 0.0, 2.0, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weight"])
@pytest.mark.parametrize("ignore_index", [-100, 2, 255])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy(reduction, weight, ignore_index, label_smoothing):
    options = {"reduction": reduction, "weight": weight, "ignore_index": ignore_index}
    seen = []

    def use(up, target, low):
        target = target.masked_fill(target == 4, ignore_index)
        if label_smoothing:
            loss = F.cross_entropy(up, target, label_smoothing=label_smoothing, **options)
            module = nn.CrossEntropyLoss(label_smoothing=label_smoothing, **options)(up, target)
        else:
            loss = F.nll_loss(F.log_softmax(up, dim=1), target, **options)
            module = nn.NLLLoss(**options)(nn.LogSoftmax(dim=1)(up), target)
            module = module + nn.CrossEntropyLoss(**options)(up, target)
        (loss + module).square().sum().backward()
        seen.append(up)
        return loss, module

    assert_same(use)
    assert not is_built(seen[1])


def _online_hard_examples(up, target):
    """The hardest pixels by loss, and by probability, as mmsegmentation's sampler picks them."""
    loss = F.cross_entropy(up, target, reduction="none", ignore_index=2)
    with torch.no_grad():
        hardest = loss.flatten().topk(20).values[-1]
        probability = up.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return (loss * (loss >= hardest) * (probability < 0.9)).sum() / 20


FORMS = {
    "over all pixels": lambda up, target: F.cross_entropy(up, target, reduction="none", ignore_index=2).mean(),
    "num_items_in_batch": lambda up, target: F.cross_entropy(up, target, reduction="sum") / torch.tensor(77),
    "weighted map": lambda up, target: (F.cross_entropy(up, target, reduction="none") * target).sum() / 9,
    "hardest": lambda up, target: F.cross_entropy(up, target, reduction="none").flatten().topk(9)[0].mean(),
    "hard examples": _online_hard_examples,
    "metric first": lambda up, target: (up.argmax(1) == target).double().mean() * 0 + F.cross_entropy(up, target),
    "functions": lambda up, target: nn.functional.cross_entropy(input=up, target=target),
}


STOCK = {
    "probabilities": lambda up, target: F.cross_entropy(up, F.one_hot(target, 5).permute(0, 3, 1, 2).to(up.dtype)),
    "size_average": lambda up, target: F.cross_entropy(up, target, size_average=False),
    "reduce": lambda up, target: F.cross_entropy(up, target, reduce=False).sum(),
    "focal": lambda up, target: ((1 - up.softmax(1)) * F.log_softmax(up, 1)).mean(),
    "binary": lambda up, target: F.binary_cross_entropy_with_logits(up[:, 0], target.to(up.dtype) / 5),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("name", [*FORMS, *STOCK])
def test_forms(name):
    maps = []

    def use(up, target, low):
        maps.append(up)
        loss = {**FORMS, **STOCK}[name](up, target)
        loss.backward()
        return loss

    assert_same(use)
    assert not is_built(maps[1]) or name in STOCK  # of hard examples only the softmax is made


def test_the_map_itself_is_not_needed_after_the_loss():
    low, target = low_and_target()
    loss = F.cross_entropy(deferred(low), target)  # the map has no other owner
    loss.backward()
    torch.testing.assert_close(low.grad, torch.autograd.grad(F.cross_entropy(upsample(low), target), low)[0])
