"""Focal loss and Dice against their definitions at full resolution, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import PSPNet
from pspnet_fast.nn import DualCrossEntropyLoss, FocalLoss, WithDice, dice_loss

CLASSES = 5


def sample(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    main, aux = (3 * torch.randn(2, CLASSES, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, CLASSES - 1, (2, 25, 33), generator=generator)  # the last class is absent
    target[0, :9] = 255
    return main.to(dtype).requires_grad_(), aux.to(dtype).requires_grad_(), target


def focal_definition(logits: Tensor, target: Tensor, gamma: float, weight: Tensor) -> Tensor:
    up = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    log_p = up.log_softmax(1).gather(1, target.clamp(max=CLASSES - 1)[:, None])[:, 0]
    share = weight[target.clamp(max=CLASSES - 1)] * (target != 255)
    return ((1 - log_p.exp()) ** gamma * -log_p * share).sum() / share.sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("labels", [torch.int64, torch.uint8])
def test_focal_is_its_definition(gamma: float, labels: torch.dtype) -> None:
    weight = torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    main, aux, target = sample(torch.float32)
    exact = [logits.detach().double().requires_grad_() for logits in (main, aux)]
    result = FocalLoss(0.3, gamma=gamma, weight=weight.float())(main, aux, target.to(labels))
    expected = [focal_definition(logits, target, gamma, weight) for logits in exact]
    (expected[0] + 0.3 * expected[1]).backward()
    result.loss.backward()
    torch.testing.assert_close(result.main.double(), expected[0], rtol=1e-5, atol=1e-6)
    for found, reference in zip((main, aux), exact, strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


def test_focal_of_sure_predictions_has_gradients() -> None:
    main, aux, target = sample(torch.float32)
    FocalLoss(gamma=0.5)(main * 1000, aux, target).loss.backward()
    assert main.grad is not None
    assert torch.isfinite(main.grad).all()
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        FocalLoss(gamma=-1)


def test_dice_is_its_definition() -> None:
    main, _, target = sample(torch.float64)
    rows = torch.linspace(0, 3, 25, dtype=torch.float64).round().long()
    columns = torch.linspace(0, 4, 33, dtype=torch.float64).round().long()
    up = main.softmax(1)[:, :, rows][..., columns]
    coefficients = []
    for index in range(CLASSES - 1):
        labelled, p = (target == index).double(), up[:, index] * (target != 255)
        coefficients.append(2 * (p * labelled).sum() / (p.sum() + labelled.sum()))
    expected = 1 - torch.stack(coefficients).mean()
    (expected_grad,) = torch.autograd.grad(expected, main)
    found = dice_loss(main, target)
    (grad,) = torch.autograd.grad(found, main)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-7)
    assert float(dice_loss(main.detach(), torch.full_like(target, 255))) == 0


def test_dice_is_added_to_each_head() -> None:
    main, aux, target = sample(torch.float32)
    inner = DualCrossEntropyLoss()(main, aux, target)
    found = WithDice(DualCrossEntropyLoss(), 0.5)(main, aux, target)
    torch.testing.assert_close(found.main, inner.main + 0.5 * dice_loss(main, target))
    torch.testing.assert_close(found.aux, inner.aux + 0.5 * dice_loss(aux, target))
    model = PSPNet(backbone="timm/test_resnet", classes=CLASSES, pretrained=False, criterion=WithDice(FocalLoss(), 1.0))
    _, main_loss, aux_loss = model(torch.randn(2, 3, 25, 33), target)
    (main_loss + aux_loss).backward()
