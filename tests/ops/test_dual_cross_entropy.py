from __future__ import annotations

import pytest
import torch
from cross_entropy_cases import draw_dual, draw_target
from running import LABELS, Backend, Function, check_compiles, check_exactness, check_meta, differentiate, random
from torch import Tensor

from pspnet_fast import DualLoss, dual_cross_entropy, upsample_argmax
from pspnet_fast.loss_options import LossOptions
from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy_argmax
from pspnet_fast.ops.operator import overload

OPERATOR = "dual_cross_entropy"
CLASSES = 4


def draw_heads(backend: Backend) -> list[Tensor]:
    return draw_dual(device=backend.device).inputs


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_label_dtypes(backend: Backend, labels: torch.dtype) -> None:
    check_exactness(*draw_dual(labels=labels, device=backend.device))


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_heads_of_one_size(backend: Backend, reduction: str) -> None:
    options = {"reduction": reduction, "pixels_weighted": True}
    check_exactness(*draw_dual((3, 4), (3, 4), (9, 13), device=backend.device, **options))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["loss", "main", "aux"])
def test_each_loss_is_differentiable(backend: Backend, which: int) -> None:
    fused, stock, inputs = draw_dual(device=backend.device)

    def gradients(function: Function) -> tuple[Tensor | None, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        found = torch.autograd.grad(function(*leaves)[which], leaves, allow_unused=True)
        return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))

    torch.testing.assert_close(gradients(fused), gradients(stock))


@pytest.mark.parametrize("frozen", [0, 1], ids=["main", "aux"])
def test_frozen_head(backend: Backend, frozen: int) -> None:
    """Only heads that require a gradient have losses that do."""
    fused, stock, inputs = draw_dual(device=backend.device)
    heads = [t.requires_grad_(i != frozen) for i, t in enumerate(inputs)]
    losses = fused(*heads)
    assert [t.requires_grad for t in losses] == [True, frozen != 0, frozen != 1]
    learned = heads[1 - frozen]
    torch.testing.assert_close(
        torch.autograd.grad(losses.loss, learned), torch.autograd.grad(stock(*heads)[0], learned)
    )


def test_result_is_named(backend: Backend) -> None:
    fused, _, heads = draw_dual(aux_weight=0.25, device=backend.device)
    losses = fused(*heads)
    assert isinstance(losses, DualLoss)
    torch.testing.assert_close(losses.loss, losses.main + 0.25 * losses.aux)


def test_nothing_is_kept_where_nothing_is_wanted(backend: Backend) -> None:
    """No states for backward, no labels and no count."""
    if backend.name == "reference":
        pytest.skip("the definition has no operator of its own")
    target = draw_target((2, 9, 13), CLASSES, device=backend.device)
    options = LossOptions(None, None, 255, 0.0, True)
    wanted = (False, False, False, False)  # a loss for each pixel, gradients, labels, their count
    found = overload(backend.operator(OPERATOR))(*draw_heads(backend), target, *wanted, *options)
    assert [t.numel() for t in found] == [1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_labels_from_the_same_pass(backend: Backend, reduction: str) -> None:
    main, aux = draw_heads(backend)
    target = draw_target((2, 17, 25), CLASSES, device=backend.device)
    result = dual_cross_entropy_argmax(main, aux, target, correct=True, reduction=reduction)
    torch.testing.assert_close(result[:3], tuple(dual_cross_entropy(main, aux, target, reduction=reduction)))
    expected = upsample_argmax(main, target.shape[1:])
    torch.testing.assert_close(result.labels, expected)
    torch.testing.assert_close(result.correct, ((expected == target) & (target != 255)).sum())
    assert result.labels is not None
    result.labels[result.labels == 1] = 255  # PSPNet hands them to scripts that write into them


@pytest.mark.parametrize("ignore_index", [255, -1, 1])
@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_correct_pixels(backend: Backend, labels: torch.dtype, ignore_index: int) -> None:
    main, aux = draw_heads(backend)
    target = draw_target((2, 17, 25), CLASSES, ignore_index, labels, backend.device)
    result = dual_cross_entropy_argmax(main, aux, target, labels=False, correct=True, ignore_index=ignore_index)
    assert result.labels is None
    hits = (upsample_argmax(main, target.shape[1:]) == target) & (target != ignore_index)
    assert hits.any()
    torch.testing.assert_close(result.correct, hits.sum())


def test_uint8_labels_do_not_wrap(backend: Backend) -> None:
    logits = random(1, 160, 2, 2, device=backend.device)
    target = upsample_argmax(logits, (4, 5)).fill_(156).to(torch.uint8)
    logits[:, 156] += 9
    result = dual_cross_entropy_argmax(logits, logits, target, correct=True, ignore_index=-100)
    assert result.correct is not None
    assert result.correct.item() == target.numel()


@pytest.mark.parametrize("layouts", [("channels_last", "nchw"), ("nchw", "channels_last")], ids=str)
@pytest.mark.parametrize("height", [1, 4])
def test_compile_heads_of_different_layouts(backend: Backend, height: int, layouts: tuple[str, str]) -> None:
    target = draw_target((2, 9, 13), CLASSES, device=backend.device)

    def losses(main: Tensor, aux: Tensor) -> tuple[Tensor, ...]:
        return tuple(dual_cross_entropy(main, aux, target))

    inputs = [random(2, CLASSES, height, 5, device=backend.device, layout=layout) for layout in layouts]
    # Code for a GPU takes seconds to make: it is made for one of the cases.
    generated = backend.device.type == "cpu" or (height, layouts[0]) == (1, "nchw")
    check_compiles(losses, inputs, backend=backend.compiler if generated else "aot_eager")
    check_meta(
        lambda main, aux: dual_cross_entropy(main, aux, torch.zeros_like(target, device=main.device)),
        inputs,
        strides=backend.name != "reference",
    )


def test_learned_aux_weight(backend: Backend) -> None:
    main, aux = draw_heads(backend)
    target = draw_target((2, 9, 13), CLASSES, device=backend.device)
    aux_weight = torch.tensor(0.4, device=backend.device, requires_grad=True)
    losses = dual_cross_entropy(main, aux, target, aux_weight=aux_weight)
    torch.testing.assert_close(torch.autograd.grad(losses.loss, aux_weight)[0], losses.aux)


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_nothing_to_score(backend: Backend, empty: str) -> None:
    target = torch.full((2, 9, 13), 255, device=backend.device)
    losses, gradients = differentiate(
        lambda main, aux: dual_cross_entropy(main, aux, target, empty=empty), draw_heads(backend)
    )
    for loss in losses:
        torch.testing.assert_close(loss, torch.full_like(loss, torch.nan if empty == "nan" else 0.0), equal_nan=True)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_label_out_of_range(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_FAST_CHECK_LABELS", "1")  # a GPU is waited for only then
    main, aux = draw_heads(backend)
    with pytest.raises(IndexError, match=rf"Target {CLASSES} is out of bounds"):
        dual_cross_entropy(main, aux, torch.full((2, 9, 13), CLASSES, device=backend.device))
