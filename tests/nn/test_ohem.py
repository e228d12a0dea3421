"""Hard example mining against its plain definition, on full-resolution logits and with explicit loops over pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet_fast import PSPNet
from pspnet_fast.nn import DualCrossEntropyLoss, OhemCrossEntropyLoss

CLASSES = 4


def plain(
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


def draw() -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randint(CLASSES, (2, 17, 25))
    target[torch.rand(target.shape) < 0.2] = 255
    # Aux is wrong everywhere, main mostly right: the heads keep different pixels.
    truth = F.one_hot(target[:, ::8, ::8].clamp(max=CLASSES - 1), CLASSES).permute(0, 3, 1, 2).double()
    return (
        truth * 3 + torch.randn(truth.shape, dtype=torch.float64),
        torch.randn(truth.shape, dtype=torch.float64),
        target,
    )


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
        {"share": 0.5, "weight": torch.tensor([1.0, 0.2, 3.0, 0.5], dtype=torch.float64), "label_smoothing": 0.1},
        {"min_kept": 30, "align_corners": False},
    ],
    ids=str,
)
def test_is_the_plain_definition(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    main, aux, target = draw()
    heads = [main.requires_grad_(), aux.requires_grad_()]
    losses = OhemCrossEntropyLoss(0.3, **options)(*heads, target)
    expected = [plain(logits, target, **options) for logits in heads]
    torch.testing.assert_close(losses[1:], tuple(expected))
    torch.testing.assert_close(losses.loss, expected[0] + 0.3 * expected[1])
    torch.testing.assert_close(
        torch.autograd.grad(losses.loss, heads), torch.autograd.grad(expected[0] + 0.3 * expected[1], heads)
    )


def test_keeps_the_hard_pixels() -> None:
    torch.manual_seed(0)
    main, _, target = draw()
    kept = OhemCrossEntropyLoss(share=0.1).hard_pixels(main, target)
    loss = F.cross_entropy(
        F.interpolate(main, target.shape[1:], mode="bilinear", align_corners=True), target,
        ignore_index=255, reduction="none",
    )  # fmt: skip
    valid = target != 255
    assert kept.sum() == (0.1 * valid.sum()).ceil()
    assert not (kept & ~valid).any()
    assert loss[kept].min() > loss[valid & ~kept].max()


def test_uint8_labels_do_not_wrap() -> None:
    logits = torch.randn(1, 160, 2, 2)
    target = torch.full((1, 9, 9), 156, dtype=torch.uint8)
    kept = OhemCrossEntropyLoss(share=1.0, ignore_index=-100).hard_pixels(logits, target)
    assert kept.all()


def test_nothing_labelled() -> None:
    main, aux, target = draw()
    losses = OhemCrossEntropyLoss()(main.requires_grad_(), aux, torch.full_like(target, 255))
    assert losses.loss.isnan()
    torch.testing.assert_close(torch.autograd.grad(losses.main, main)[0], torch.zeros_like(main))


def test_empty_batch() -> None:
    main, aux, target = (t[:0] for t in draw())
    assert OhemCrossEntropyLoss()(main, aux, target).loss.isnan()


@pytest.mark.parametrize("criterion", [OhemCrossEntropyLoss(share=0.3), DualCrossEntropyLoss()], ids=["ohem", "dual"])
def test_pspnet_gives_it_low_resolution_logits(criterion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    forward = type(criterion).forward

    def spy(self: Any, main: Tensor, aux: Tensor, target: Tensor) -> Any:
        seen.append(tuple(main.shape))
        return forward(self, main, aux, target)

    monkeypatch.setattr(type(criterion), "forward", spy)
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
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OhemCrossEntropyLoss(**arguments)
