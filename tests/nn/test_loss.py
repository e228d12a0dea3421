"""The losses against their definitions at full resolution: hard example mining with loops over pixels, focal, Dice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet_fast import PSPNet
from pspnet_fast.nn import DualCrossEntropyLoss, FocalLoss, OhemCrossEntropyLoss, WithDice, dice_loss

CLASSES = 5
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0], dtype=torch.float64)


def ohem_definition(
    logits: Tensor, target: Tensor, *, threshold: float = 0.7, min_kept: int = 100_000, share: float | None = None,
    weight: Tensor | None = None, label_smoothing: float = 0.0, align_corners: bool = True,
) -> Tensor:  # fmt: skip
    up = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)
    probabilities = up.detach().softmax(1)
    labelled = [(probabilities[b, target[b, y, x], y, x].item(), b, y, x) for b, y, x in (target != 255).nonzero()]
    labelled.sort()
    if share is None:
        count = sum(p < threshold for p, *_ in labelled)
        count = max(count, min(min_kept * len(target), len(labelled)))
    else:
        count = -int(-share * len(labelled) // 1)
    kept = torch.full_like(target, 255)
    for _, b, y, x in labelled[:count]:
        kept[b, y, x] = target[b, y, x]
    return F.cross_entropy(up, kept, weight, ignore_index=255, label_smoothing=label_smoothing)


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both heads that need a gradient, and labels with a part ignored; the last class is absent."""
    torch.manual_seed(0)
    target = torch.randint(CLASSES - 1, (2, 17, 25))
    target[torch.rand(target.shape) < 0.2] = 255
    # Aux is wrong everywhere, main mostly right: the heads keep different pixels.
    truth = F.one_hot(target[:, ::8, ::8].clamp(max=CLASSES - 1), CLASSES).permute(0, 3, 1, 2).double()
    main, aux = 3 * truth + torch.randn(truth.shape).double(), torch.randn(truth.shape).double()
    return main.to(dtype).requires_grad_(), aux.to(dtype).requires_grad_(), target


@pytest.mark.parametrize(
    "options",
    [
        {"min_kept": 1},
        {"min_kept": 200},
        {"threshold": 0.3, "min_kept": 50},
        {"threshold": 1.0},
        {"min_kept": 10**9},
        {"share": 0.25},
        {"share": 1.0},
        {"share": 1e-9},
        {"share": 0.5, "weight": WEIGHT, "label_smoothing": 0.1},
        {"min_kept": 30, "align_corners": False},
    ],
    ids=str,
)
def test_ohem_is_its_definition(options: dict[str, Any]) -> None:
    *heads, target = draw()
    losses = OhemCrossEntropyLoss(0.3, **options)(*heads, target)
    expected = [ohem_definition(logits, target, **options) for logits in heads]
    torch.testing.assert_close(losses[1:], tuple(expected))
    torch.testing.assert_close(losses.loss, expected[0] + 0.3 * expected[1])
    torch.testing.assert_close(
        torch.autograd.grad(losses.loss, heads), torch.autograd.grad(expected[0] + 0.3 * expected[1], heads)
    )


def test_uint8_labels_do_not_wrap() -> None:
    logits = torch.randn(1, 160, 2, 2)
    target = torch.full((1, 9, 9), 156, dtype=torch.uint8)
    kept = OhemCrossEntropyLoss(share=1.0, ignore_index=-100).hard_pixels(logits, target)
    assert kept.all()


@pytest.mark.parametrize("loss", [OhemCrossEntropyLoss(), FocalLoss()], ids=lambda loss: type(loss).__name__)
def test_nothing_labelled_or_no_image(loss: nn.Module) -> None:
    main, aux, target = draw()
    losses = loss(main, aux, torch.full_like(target, 255))
    assert losses.loss.isnan()
    if isinstance(loss, OhemCrossEntropyLoss):
        torch.testing.assert_close(torch.autograd.grad(losses.main, main)[0], torch.zeros_like(main))
    assert loss(main[:0], aux[:0], target[:0]).loss.isnan()


@pytest.mark.parametrize("criterion", [OhemCrossEntropyLoss(share=0.3), DualCrossEntropyLoss()], ids=["ohem", "dual"])
def test_pspnet_gives_it_low_resolution_logits(criterion: nn.Module) -> None:
    seen: list[tuple[int, ...]] = []
    criterion.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    network = PSPNet(18, classes=CLASSES, criterion=criterion, pretrained=False)
    y = torch.randint(CLASSES, (2, 57, 49))
    labels, main_loss, aux_loss = network(torch.randn(2, 3, 57, 49), y)
    assert seen == [(2, CLASSES, 8, 7)]
    assert labels.shape == y.shape
    (main_loss + 0.4 * aux_loss).backward()
    assert all(p.grad is not None for p in network.cls.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threshold": 0}, r"threshold must be in \(0, 1\], not 0"),
        ({"threshold": 1.5}, r"threshold must be in \(0, 1\], not 1.5"),
        ({"share": 0.0}, r"share must be in \(0, 1\], not 0.0"),
        ({"share": 2}, r"share must be in \(0, 1\], not 2"),
        ({"min_kept": 0}, r"min_kept must be at least 1 pixel per image, not 0"),
    ],
)
def test_bad_arguments_of_ohem(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OhemCrossEntropyLoss(**arguments)


def focal_definition(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    up = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    log_p = up.log_softmax(1).gather(1, target.clamp(max=CLASSES - 1)[:, None])[:, 0]
    share = WEIGHT[target.clamp(max=CLASSES - 1)] * (target != 255)
    return ((1 - log_p.exp()) ** gamma * -log_p * share).sum() / share.sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("labels", [torch.int64, torch.uint8])
def test_focal_is_its_definition(gamma: float, labels: torch.dtype) -> None:
    main, aux, target = draw(torch.float32)
    exact = [logits.detach().double().requires_grad_() for logits in (main, aux)]
    result = FocalLoss(0.3, gamma=gamma, weight=WEIGHT.float())(main, aux, target.to(labels))
    expected = [focal_definition(logits, target, gamma) for logits in exact]
    (expected[0] + 0.3 * expected[1]).backward()
    result.loss.backward()
    torch.testing.assert_close(result.main.double(), expected[0], rtol=1e-5, atol=1e-6)
    for found, reference in zip((main, aux), exact, strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


def test_focal_of_sure_predictions_has_gradients() -> None:
    main, aux, target = draw(torch.float32)
    FocalLoss(gamma=0.5)(main * 1000, aux, target).loss.backward()
    assert main.grad is not None
    assert torch.isfinite(main.grad).all()
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        FocalLoss(gamma=-1)


def test_dice_is_its_definition() -> None:
    main, _, target = draw(torch.float64)
    rows = torch.linspace(0, 2, 17, dtype=torch.float64).round().long()
    columns = torch.linspace(0, 3, 25, dtype=torch.float64).round().long()
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
    main, aux, target = draw(torch.float32)
    inner = DualCrossEntropyLoss()(main, aux, target)
    found = WithDice(DualCrossEntropyLoss(), 0.5)(main, aux, target)
    torch.testing.assert_close(found.main, inner.main + 0.5 * dice_loss(main, target))
    torch.testing.assert_close(found.aux, inner.aux + 0.5 * dice_loss(aux, target))
    model = PSPNet(backbone="timm/test_resnet", classes=CLASSES, pretrained=False, criterion=WithDice(FocalLoss(), 1.0))
    _, main_loss, aux_loss = model(torch.randn(2, 3, 17, 25), target)
    (main_loss + aux_loss).backward()
