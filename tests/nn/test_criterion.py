"""The criterion of the constructor: fused where it is nn.CrossEntropyLoss, called where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_pairs import CLASSES, assert_trains_alike, make_batch, make_pair
from torch import Tensor, nn

from pspnet_fast import PSPNet, dual_cross_entropy
from pspnet_fast.nn import DualCrossEntropyLoss, OhemCrossEntropyLoss
from pspnet_fast.nn.fusibility import fusable_options

WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


class FocalLoss(nn.CrossEntropyLoss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
        return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.softmax(1)[:, 0] - (target == 0).to(logits.dtype)).square().mean()


def hooked_cross_entropy() -> nn.Module:
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    criterion.register_forward_hook(lambda module, inputs, output: 3 * output)
    return criterion


OPTIONS: list[dict[str, Any]] = [
    {"weight": WEIGHT},
    {"label_smoothing": 0.1},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 1},
]
FUSED = {",".join(options): nn.CrossEntropyLoss(**{"ignore_index": 255, **options}) for options in OPTIONS}
CALLED = {"subclass": FocalLoss(ignore_index=255), "function": squared_error, "hooked": hooked_cross_entropy()}


@pytest.mark.parametrize("name", [*FUSED, *CALLED])
def test_cross_entropy_is_fused_and_others_are_called(name: str) -> None:
    criterion = {**FUSED, **CALLED}[name]
    fast, plain = make_pair(criterion=criterion)
    assert (fusable_options(fast.criterion) is not None) == (name in FUSED)
    x, y = make_batch()
    assert_trains_alike(fast, plain, x, y.where(y != 255, getattr(criterion, "ignore_index", 255)))


def test_class_probabilities_as_labels() -> None:
    fast, plain = make_pair(criterion=nn.CrossEntropyLoss())
    x, _ = make_batch()
    assert_trains_alike(fast, plain, x, torch.rand(3, CLASSES, 57, 49, dtype=torch.float64).softmax(1))


def test_nothing_labelled_is_nan_as_in_pytorch() -> None:
    fast, plain = make_pair()
    x, y = make_batch()
    step = assert_trains_alike(fast, plain, x, torch.full_like(y, 255))
    assert step.main.isnan()
    assert step.aux.isnan()


def test_class_weights_follow_the_module() -> None:
    fast, plain = make_pair(criterion=nn.CrossEntropyLoss(ignore_index=255, weight=WEIGHT.clone()))
    assert "criterion.weight" in fast.state_dict()
    assert fast.float().criterion.weight.dtype == torch.float32
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_dual_cross_entropy_loss_is_the_operator() -> None:
    heads = [torch.randn(2, CLASSES, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    target, pixel_weight = torch.randint(0, CLASSES, (2, 33, 41)), torch.rand(2, 33, 41)
    options: dict[str, Any] = {"ignore_index": 1, "label_smoothing": 0.1, "denominator": "all", "align_corners": False}
    criterion = DualCrossEntropyLoss(0.3, weight=WEIGHT, **options)
    losses = criterion(*heads, target, pixel_weight)
    expected = dual_cross_entropy(*heads, target, aux_weight=0.3, weight=WEIGHT, pixel_weight=pixel_weight, **options)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    gradients = (torch.autograd.grad(found.loss, heads) for found in (losses, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert "aux_weight=0.3" in repr(criterion)
    assert criterion.float().weight.dtype == torch.float32


@pytest.mark.parametrize("criterion", [DualCrossEntropyLoss, OhemCrossEntropyLoss])
@pytest.mark.parametrize("aux_weight", [0.4, 1.0, 0.0])
def test_pspnet_refuses_a_weight_that_it_would_not_apply(criterion: Any, aux_weight: float) -> None:
    words = rf"aux_weight={aux_weight}, but PSPNet returns .* unweighted; leave aux_weight out and train on main_loss"
    with pytest.raises(ValueError, match=words):
        PSPNet(18, classes=CLASSES, criterion=criterion(aux_weight=aux_weight), pretrained=False)
    network = PSPNet(18, classes=CLASSES, criterion=criterion(), pretrained=False)
    network.criterion = criterion(aux_weight)
    with pytest.raises(ValueError, match=words):
        network(*make_batch())


def test_default_weight_of_the_auxiliary_loss() -> None:
    main, aux = (torch.randn(1, CLASSES, 3, 3) for _ in range(2))
    target = torch.randint(0, CLASSES, (1, 9, 9))
    for criterion in (DualCrossEntropyLoss(), OhemCrossEntropyLoss(min_kept=1)):
        losses = criterion(main, aux, target)
        torch.testing.assert_close(losses.loss, losses.main + 0.4 * losses.aux)
        assert "aux_weight=0.4" in repr(criterion)
