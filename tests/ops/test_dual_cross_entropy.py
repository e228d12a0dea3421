from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_entropy_cases import ANY_OPTIONS, BAD_OPTIONS, OPTIONS, draw_options, draw_target, stock_loss
from hypothesis import given
from hypothesis import strategies as st
from running import (
    DTYPES,
    INTERPRETED,
    Backend,
    Function,
    check_compiles,
    check_exactness,
    check_exports,
    check_gradients_twice,
    check_meta,
    check_same_bits,
    check_writes_everything,
    differentiate,
    random,
)
from torch import Tensor

from pspnet_fast import DualLoss, dual_cross_entropy, upsample_argmax
from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy_argmax

OPERATOR = "dual_cross_entropy"
CLASSES = 4
SIZE = (2, 9, 13) if INTERPRETED else (2, 17, 25)


def heads(backend: Backend, aux_size: tuple[int, int] = (3, 5), **kwargs: Any) -> list[Tensor]:
    """Logits of both heads, of sizes that differ."""
    sizes = ((4, 5), aux_size)
    return [random(2, CLASSES, *size, device=backend.device, **kwargs) * 2 for size in sizes]


def both(backend: Backend, *, labels: torch.dtype = torch.int64, **options: Any) -> tuple[Function, Function]:
    """The operator and PSPNet's loss in stock operators, on one drawn target."""
    aux_weight = options.pop("aux_weight", 0.4)
    target = draw_target(SIZE, CLASSES, options.get("ignore_index", 255), labels, backend.device)
    drawn = draw_options(target, CLASSES, **options)

    def fused(main: Tensor, aux: Tensor) -> DualLoss:
        return dual_cross_entropy(main, aux, target, aux_weight=aux_weight, **drawn)

    def stock(main: Tensor, aux: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses = stock_loss(main, target, **drawn), stock_loss(aux, target, **drawn)
        return losses[0] + aux_weight * losses[1], *losses

    return fused, stock


# check_exactness draws an upstream gradient for each of the three losses, so all of them are differentiated at once.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_dual_cross_entropy(backend: Backend, options: dict[str, Any], dtype: torch.dtype) -> None:
    backend.require(dtype, options)
    check_exactness(*both(backend, **options), heads(backend, dtype=dtype))


@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_label_dtypes(backend: Backend, labels: torch.dtype) -> None:
    check_exactness(*both(backend, labels=labels), heads(backend))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "transposed"])
def test_layouts(backend: Backend, layout: str) -> None:
    check_exactness(*both(backend), heads(backend, layout=layout))


@given(
    options=ANY_OPTIONS,
    aux_weight=st.sampled_from([0.0, 0.4, 1.0]),
    aux_size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_any_shape_and_options(
    backend: Backend, options: dict[str, Any], aux_weight: float, aux_size: tuple[int, int]
) -> None:
    check_exactness(*both(backend, aux_weight=aux_weight, **options), heads(backend, aux_size))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["loss", "main", "aux"])
def test_each_loss_is_differentiable(backend: Backend, which: int) -> None:
    fused, stock = both(backend)

    def gradients(function: Function) -> tuple[Tensor | None, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        found = torch.autograd.grad(function(*leaves)[which], leaves, allow_unused=True)
        return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))

    inputs = heads(backend)
    torch.testing.assert_close(gradients(fused), gradients(stock))


def test_frozen_head(backend: Backend) -> None:
    fused, stock = both(backend)
    main, aux = heads(backend)
    aux.requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(fused(main, aux).loss, aux), torch.autograd.grad(stock(main, aux)[0], aux)
    )


def test_result_is_named(backend: Backend) -> None:
    fused, _ = both(backend, aux_weight=0.25)
    losses = fused(*heads(backend))
    assert isinstance(losses, DualLoss)
    torch.testing.assert_close(losses.loss, losses.main + 0.25 * losses.aux)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_labels_from_the_same_pass(backend: Backend, reduction: str) -> None:
    main, aux = heads(backend)
    target = draw_target((2, 17, 25), CLASSES, device=backend.device)
    result = dual_cross_entropy_argmax(main, aux, target, correct=True, reduction=reduction)
    torch.testing.assert_close(result[:3], tuple(dual_cross_entropy(main, aux, target, reduction=reduction)))
    expected = upsample_argmax(main, target.shape[1:])
    torch.testing.assert_close(result.labels, expected)
    torch.testing.assert_close(result.correct, ((expected == target) & (target != 255)).sum())
    assert result.labels is not None
    result.labels[result.labels == 1] = 255  # PSPNet hands them to scripts that write into them


@pytest.mark.parametrize("ignore_index", [255, -1, 1])
@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_correct_pixels(backend: Backend, labels: torch.dtype, ignore_index: int) -> None:
    main, aux = heads(backend)
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


def test_only_heads_that_require_grad_have_losses_that_do(backend: Backend) -> None:
    main, aux = heads(backend)
    target = draw_target((2, 9, 13), CLASSES, device=backend.device)
    for frozen in (0, 1):
        given = [t.detach().requires_grad_(i != frozen) for i, t in enumerate((main, aux))]
        losses = dual_cross_entropy(*given, target)
        assert [t.requires_grad for t in losses] == [True, frozen != 0, frozen != 1]


@pytest.mark.parametrize(
    ("aux_weight", "error"),
    [
        (True, TypeError),
        (None, TypeError),
        ([0.4], TypeError),
        ("0.4", TypeError),
        (torch.ones(2), ValueError),
        (torch.ones((), dtype=torch.int64), ValueError),
    ],
    ids=str,
)
def test_bad_aux_weight(backend: Backend, aux_weight: Any, error: type[Exception]) -> None:
    target = torch.zeros(2, 9, 13, dtype=torch.int64, device=backend.device)
    with pytest.raises(error, match="aux_weight must be a number or a 0-d floating-point tensor, not"):
        dual_cross_entropy(*heads(backend), target, aux_weight=aux_weight)


def test_learned_aux_weight(backend: Backend) -> None:
    main, aux = heads(backend)
    target = draw_target((2, 9, 13), CLASSES, device=backend.device)
    aux_weight = torch.tensor(0.4, device=backend.device, requires_grad=True)
    losses = dual_cross_entropy(main, aux, target, aux_weight=aux_weight)
    torch.testing.assert_close(torch.autograd.grad(losses.loss, aux_weight)[0], losses.aux)


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_nothing_to_score(backend: Backend, empty: str) -> None:
    target = torch.full((2, 9, 13), 255, device=backend.device)
    losses, gradients = differentiate(
        lambda main, aux: dual_cross_entropy(main, aux, target, empty=empty), heads(backend)
    )
    for loss in losses:
        torch.testing.assert_close(loss, torch.full_like(loss, torch.nan if empty == "nan" else 0.0), equal_nan=True)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(backend: Backend, reduction: str) -> None:
    target = draw_target((1, 5, 7), 3, device=backend.device)
    inputs = [random(1, 3, *size, dtype=torch.float64, device=backend.device) for size in ((2, 3), (3, 2))]
    options = draw_options(target, 3, weighted=True, pixels_weighted=True, label_smoothing=0.1, reduction=reduction)
    check_gradients_twice(lambda main, aux: dual_cross_entropy(main, aux, target, **options), inputs)


def test_empty_batch(backend: Backend) -> None:
    inputs = [t[:0] for t in heads(backend)]
    target = torch.zeros(0, 9, 13, dtype=torch.int64, device=backend.device)
    losses, gradients = differentiate(lambda main, aux: dual_cross_entropy(main, aux, target, empty="zero"), inputs)
    assert [loss.item() for loss in losses] == [0, 0, 0]
    assert [g.shape for g in gradients] == [t.shape for t in inputs]


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_same_bits_every_run(backend: Backend, reduction: str) -> None:
    fused, _ = both(backend, reduction=reduction)
    check_same_bits(fused, heads(backend))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_writes_every_element(backend: Backend, reduction: str, layout: str) -> None:
    fused, _ = both(backend, reduction=reduction)
    check_writes_everything(fused, heads(backend, layout=layout))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_meta(backend: Backend, layout: str) -> None:
    def fused(main: Tensor, aux: Tensor) -> DualLoss:
        return dual_cross_entropy(main, aux, torch.zeros(2, 9, 13, dtype=torch.int64, device=main.device))

    check_meta(fused, heads(backend, layout=layout), strides=backend.name != "reference")


def test_compile(backend: Backend) -> None:
    def loss(main: Tensor, aux: Tensor) -> Tensor:
        target = torch.arange(9 * 13, device=main.device).view(1, 9, 13).expand(main.shape[0], -1, -1) % CLASSES
        losses = dual_cross_entropy(main * 2, aux, target, ignore_index=1)
        return losses.loss + losses.aux

    inputs = (heads(backend), [t[:1, ..., 1:].contiguous() for t in heads(backend)])
    check_compiles(loss, *inputs, backend="aot_eager")


def test_export(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    fused, _ = both(backend)
    check_exports(lambda main, aux: tuple(fused(main, aux)), heads(backend), backend.operator(OPERATOR))


def test_autocast_does_not_lose_precision(backend: Backend) -> None:
    fused, _ = both(backend)
    inputs = heads(backend, dtype=torch.bfloat16)
    expected = fused(*inputs)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(fused(*inputs), expected)


def test_label_out_of_range(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_FAST_CHECK_LABELS", "1")  # a GPU is waited for only then
    main, aux = heads(backend)
    with pytest.raises(IndexError, match=rf"Target {CLASSES} is out of bounds"):
        dual_cross_entropy(main, aux, torch.full((2, 9, 13), CLASSES, device=backend.device))


@pytest.mark.parametrize(("changed", "error", "words"), BAD_OPTIONS, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_bad_arguments(backend: Backend, changed: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"target": torch.zeros(2, 8, 10, dtype=torch.int64), **changed}
    moved: dict[str, Any] = {k: v.to(backend.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    logits = torch.zeros(2, 3, 4, 5, device=backend.device)
    with pytest.raises(error, match=words):
        dual_cross_entropy(logits, logits, **moved)


@pytest.mark.parametrize("shape", [(2, CLASSES + 1, 4, 5), (1, CLASSES, 4, 5)], ids=str)
def test_heads_that_do_not_match(backend: Backend, shape: tuple[int, ...]) -> None:
    target = torch.zeros(2, 8, 10, dtype=torch.int64, device=backend.device)
    with pytest.raises(ValueError, match=r"aux must have the batch, classes, dtype and device of main"):
        dual_cross_entropy(heads(backend)[0], torch.zeros(*shape, device=backend.device), target)
