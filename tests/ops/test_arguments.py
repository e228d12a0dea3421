"""Arguments at the border of what the operators take: degenerate sizes, and clear errors for what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from running import Backend, draw_norm, implementations, random
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pspnet_fast import AxisTaps, ops, reference
from pspnet_fast.ops import pyramid_conv_composed


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_x_without_channels(bias: bool, kernel: int) -> None:
    x, levels, weight = random(2, 0, 4, 4), random(2, 3, 5), random(5, 6, kernel, kernel)
    added = random(5) if bias else None
    arguments = [t.requires_grad_() for t in (x, levels, weight)]
    result = ops.pyramid_conv(*arguments, added, bins=(1, 2))
    expected = reference.pyramid_conv(*(t.detach().double() for t in arguments), _double(added), bins=(1, 2))
    assert result.shape == (2, 5, 4, 4)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    composed = pyramid_conv_composed.forward(*(t.detach() for t in arguments), added, [1, 1, 2, 2], True, True)
    torch.testing.assert_close(composed.double(), expected, rtol=1e-5, atol=1e-5)
    assert [g.shape for g in torch.autograd.grad(result.sum(), arguments)] == [t.shape for t in arguments]

    with torch.no_grad():
        norm = draw_norm(5)
        fused = ops.pyramid_conv_norm_relu(x, levels, weight, norm, added, bins=(1, 2))
    exact = reference.norm_relu(expected, reference.NormStatistics(*(t.double() for t in norm[:4]), norm.eps))
    torch.testing.assert_close(fused.double(), exact, rtol=1e-4, atol=1e-4)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def test_bins_may_be_integers_of_numpy() -> None:
    x = random(1, 2, 5, 5)
    torch.testing.assert_close(ops.pyramid_pool(x, np.array([1, 3])), ops.pyramid_pool(x, (1, 3)))


# ---- What is refused ------------------------------------------------------------------------------------------------

CONV = {"x": torch.zeros(2, 3, 5, 7), "levels": torch.zeros(2, 2, 5), "weight": torch.zeros(4, 7, 3, 3), "bins": (1, 2)}
NORM = draw_norm(4)
LEVELS = {
    "x": torch.zeros(2, 5, 7, 9), "weights": [torch.zeros(4, 5, 1, 1)] * 2, "norms": [NORM] * 2, "bins": (1, 2)
}  # fmt: skip
LOGITS = torch.zeros(2, 3, 4, 5)
TARGET = torch.zeros(2, 8, 10, dtype=torch.int64)
TAPS = AxisTaps(torch.zeros(8, 2, dtype=torch.int32), torch.ones(8, 2))
# Arguments that are taken, of which a case changes some.
GOOD: dict[str, dict[str, Any]] = {
    "pyramid_pool": {"x": torch.zeros(1, 3, 7, 9)},
    "pyramid_levels": LEVELS,
    "pyramid_concat": {"x": torch.zeros(2, 3, 5, 7), "levels": torch.zeros(2, 2, 50)},
    "pyramid_conv": CONV | {"bias": torch.zeros(4)},
    "pyramid_conv_norm_relu": CONV | {"norm": NORM},
    "upsample_add": {"levels": torch.zeros(2, 3, 31), "size": (8, 12), "bins": ((4, 6), (2, 3), 1)},
    "upsample_argmax": {"logits": torch.zeros(2, 4, 3, 3), "size": (8, 9)},
    "upsample_softmax_add": {"total": torch.zeros(2, 4, 8, 9), "logits": torch.zeros(2, 4, 3, 3), "size": (8, 9)},
    "upsample_cross_entropy": {"logits": LOGITS, "target": TARGET},
    "dual_cross_entropy": {"main": LOGITS, "aux": LOGITS, "target": TARGET},
}


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


LOSS: list[tuple[dict[str, Any], str]] = [
    ({"target": zeros(2, 1, 8, 10)}, r"target must be a label map \[2, H, W\] .* not of shape"),
    ({"target": zeros(3, 8, 10).long()}, r"target must be a label map \[2, H, W\]"),
    ({"target": zeros(2, 0, 10).long()}, r"target has no pixels: its shape is \(2, 0, 10\)"),
    ({"target": zeros(2, 8, 10)}, r"TypeError: target must be int64, int32 or uint8 .* not torch.float32"),
    ({"target": [[[0]]]}, "TypeError: target must be a tensor, not list"),
    ({"reduction": "avg"}, r"reduction must be one of 'none', 'sum', 'mean', not 'avg'"),
    ({"denominator": "pixels"}, r"denominator must be one of 'valid', 'all', not 'pixels'"),
    ({"denominator": 0}, r"denominator must be 'valid', 'all' or a positive number, not 0"),
    ({"denominator": float("nan")}, r"denominator must be 'valid', 'all' or a positive number, not nan"),
    ({"empty": "none"}, r"empty must be one of 'nan', 'zero', not 'none'"),
    ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], not 1.5"),
    ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\], not -0.1"),
    ({"weight": zeros(4)}, r"weight must be \[3\], one per class, not \(4,\)"),
    ({"weight": zeros(3, requires_grad=True)}, r"weight requires grad, .* pass weight.detach\(\)"),
    ({"weight": zeros(3, dtype=torch.complex64)}, r"TypeError: weight must be real, not torch.complex64"),
    (
        {"pixel_weight": zeros(2, 8, 10, dtype=torch.complex64)},
        r"TypeError: pixel_weight must be real, not torch.complex64",
    ),
    ({"pixel_weight": zeros(2, 4, 5)}, r"pixel_weight must be \(2, 8, 10\), as target"),
    ({"pixel_weight": zeros(2, 8, 10, requires_grad=True)}, r"pixel_weight requires grad, .* pass pixel_weight.detach"),
]
AUX_WEIGHT = "aux_weight must be a number or a 0-d floating-point tensor, not"
BINS = "bins must be a sequence of integers of 1 to 4096"
# By operator: changed arguments, and the message that follows them.
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "pyramid_pool": [
        ({"x": zeros(3, 7, 9)}, r"x must be \[B, C, H, W\], not of shape \(3, 7, 9\)"),
        ({"x": zeros(1, 3, 0, 9)}, r"x has no pixels: its shape is \(1, 3, 0, 9\)"),
        ({"x": zeros(1, 3, 7, 9).int()}, r"TypeError: not torch.int32; convert it with x.float\(\)"),
        ({"bins": 3}, rf"{BINS} such as \(1, 2, 3, 6\), not 3"),
        ({"bins": ()}, rf"{BINS} .* not \(\)"),
        ({"bins": (1, 0)}, rf"{BINS} .* not \(1, 0\)"),
        ({"bins": (1, 2.0)}, rf"{BINS} .* not \(1, 2.0\)"),
        ({"bins": (1, True)}, rf"{BINS} .* not \(1, True\)"),
        ({"bins": (2**31,)}, rf"{BINS} .* not \(2147"),
    ],
    "pyramid_levels": [
        ({"weights": LEVELS["weights"][:1]}, r"weights must hold one entry for each of 2 bins, not 1"),
        ({"norms": [NORM] * 3}, r"norms must hold one entry for each of 2 bins, not 3"),
        (
            {"weights": [zeros(4, 5, 1, 1), zeros(4, 4, 1, 1)]},
            r"weights\[1\] must be \[4, 5, 1, 1\], .* not \[4, 4, 1, 1\]",
        ),
        (
            {"weights": [zeros(4, 5, 1, 1), zeros(4, 5, 1, 1).double()]},
            r"TypeError: weights\[1\] is torch.float64 but x torch.float32",
        ),
        ({"norms": [NORM._replace(var=zeros(3)), NORM]}, r"norms\[0\].var must be \[4\], not \[3\]"),
        ({"norms": [NORM._replace(eps=-1e-5), NORM]}, r"norms\[0\].eps must be a finite number of at least 0"),
    ],
    "pyramid_concat": [
        ({"x": zeros(3, 5, 7)}, r"x must be \[B, C, H, W\], not of shape \(3, 5, 7\)"),
        ({"levels": zeros(2, 2, 49)}, r"levels must be \[2, channels, 50\] .* not \(2, 2, 49\)"),
        ({"levels": zeros(1, 2, 50)}, r"levels must be \[2, channels, 50\] .* not \(1, 2, 50\)"),
        ({"levels": zeros(2, 2, 7, 7), "bins": (7,)}, r"levels must be \[2, channels, 49\] .* not \(2, 2, 7, 7\)"),
        ({"levels": zeros(2, 0, 50)}, r"levels have no channels: their shape is \(2, 0, 50\)"),
        ({"levels": zeros(2, 2, 50, device="meta")}, r"levels is on meta but x on .*; move one with \.to"),
        ({"bins": (1, -2)}, r"bins must be a sequence of integers .* not \(1, -2\)"),
    ],
    "pyramid_conv": [
        ({"x": zeros(3, 5, 7)}, r"x must be \[B, C, H, W\], not of shape \(3, 5, 7\)"),
        ({"levels": zeros(2, 2, 6)}, r"levels must be \[2, channels, 5\] .* not \(2, 2, 6\)"),
        ({"weight": zeros(4, 8, 3, 3)}, r"weight must be \[O, 7, kh, kw\] .* not \(4, 8, 3, 3\)"),
        ({"weight": zeros(4, 7, 3)}, r"weight must be \[O, 7, kh, kw\] .* not \(4, 7, 3\)"),
        ({"weight": zeros(4, 7, 2, 3)}, r"weight must have odd kernel sides"),
        ({"bias": zeros(5)}, r"bias must be \[4\], not \(5,\)"),
        *(
            ({"bins": b}, BINS)
            for b in ((), (0,), (1, (2, 0)), ((1, 2, 3),), ((1.0, 2),), (True, (1, 1)), ((1, 5000),))
        ),
        *(
            ({name: GOOD["pyramid_conv"][name].to("meta")}, f"{name} is on meta but x on")
            for name in ("levels", "weight", "bias")
        ),
        *(
            ({name: GOOD["pyramid_conv"][name].double()}, f"TypeError: {name} is torch.float64 but x torch.float32")
            for name in ("levels", "weight", "bias")
        ),
        *(
            ({name: [1.0, 2.0]}, f"TypeError: {name} must be a tensor, not list")
            for name in ("x", "levels", "weight", "bias")
        ),
    ],
    "pyramid_conv_norm_relu": [
        ({"norm": [1.0]}, "TypeError: norm must be NormStatistics"),
        ({"norm": NORM._replace(mean=[0.0, 0.0])}, "TypeError: norm.mean must be a tensor"),
        *(({"norm": NORM._replace(**{f: zeros(5)})}, rf"norm.{f} must be \[4\], not \[5\]") for f in NORM._fields[:4]),
        *(
            ({"norm": NORM._replace(**{f: zeros(4, device="meta")})}, f"norm.{f} is on meta but weight on")
            for f in NORM._fields[:4]
        ),
        *(
            ({"norm": NORM._replace(eps=eps)}, "norm.eps must be a finite number of at least 0")
            for eps in (-1e-5, float("nan"), float("inf"))
        ),
    ],
    "upsample_add": [
        ({"levels": zeros(2, 3, 30)}, r"levels must be \[B, C, 31\]"),
        ({"levels": zeros(2, 3, 31).long()}, "TypeError: levels must be floating-point"),
        ({"levels": zeros(2, 0, 31)}, "levels have no channels"),
        ({"size": (0, 4)}, "size must be"),
        ({"size": None}, "size must be given where base is None"),
        ({"base": zeros(2, 3, 8, 11)}, r"base must be \[2, 3, 8, 12\] .* not \[2, 3, 8, 11\]"),
        ({"base": zeros(2, 3, 8, 12).double()}, "TypeError: base is torch.float64 but levels"),
        ({"base": zeros(2, 3, 8, 12, device="meta")}, "base is on meta but levels on"),
        ({"bins": ()}, "bins must be"),
    ],
    "upsample_argmax": [
        ({"logits": zeros(4, 3, 3)}, r"logits must be \[B, C, H, W\], not of shape \(4, 3, 3\)"),
        ({"logits": [[1.0]]}, "TypeError: logits must be a tensor, not list"),
        ({"size": (8,)}, r"size must be \(height, width\) .* not \(8,\)"),
        ({"size": (8, 0)}, r"size must be \(height, width\) .* not \(8, 0\)"),
        *(({"size": size}, "size must be") for size in ((2**40, 1), (1, 2**25), 3, None)),
        ({"dtype": torch.float32}, r"TypeError: dtype must be .* not torch.float32"),
        ({"logits": zeros(2, 257, 3, 3), "dtype": torch.uint8}, r"uint8 holds 256 classes, but logits have 257"),
    ],
    "upsample_softmax_add": [
        ({"total": zeros(4, 8, 9)}, r"total must be \[B, C, H, W\], not of shape \(4, 8, 9\)"),
        ({"total": zeros(2, 3, 8, 9)}, r"total must be \[2, 4, H, W\] for logits .* not \(2, 3"),
        ({"total": zeros(2, 4, 7, 9)}, r"total must be \[B, C, 8, 9\] where rows .* not \(2, 4, 7"),
        ({"total": zeros(2, 4, 8, 9).half()}, r"TypeError: total must be torch.float32 .* not torch.float16"),
        ({"total": [0.0]}, "TypeError: total must be a tensor, not list"),
        ({"size": (8, 0)}, r"size must be \(height, width\) .* not \(8, 0\)"),
        ({"logits": [1.0]}, "TypeError: logits must be a tensor, not list"),
        ({"rows": TAPS._replace(position=TAPS.position[:7])}, r"rows.position must be \[8, 2\] "),
        ({"rows": TAPS._replace(weight=3)}, "TypeError: rows.weight must be a tensor, not int"),
        ({"rows": TAPS._replace(weight=TAPS.position)}, "TypeError: rows must be AxisTaps of integers"),
    ],
    "upsample_cross_entropy": [
        *LOSS,
        ({"logits": zeros(3, 4, 5)}, r"logits must be \[B, C, H, W\], not of shape \(3, 4, 5\)"),
        ({"logits": zeros(2, 3, 4, 5).int()}, r"TypeError: logits must be floating-point, not torch.int32"),
        ({"logits": zeros(2, 3, 4, 0)}, r"logits has no pixels: its shape is \(2, 3, 4, 0\)"),
    ],
    "dual_cross_entropy": [
        *LOSS,
        *(
            ({"aux": zeros(*shape)}, r"aux must have the batch, classes, dtype and device of main")
            for shape in ((2, 4, 4, 5), (1, 3, 4, 5))
        ),
        *(({"aux_weight": weight}, f"TypeError: {AUX_WEIGHT}") for weight in (True, None, [0.4], "0.4")),
        *(({"aux_weight": weight}, AUX_WEIGHT) for weight in (torch.ones(2), torch.ones(()).long())),
    ],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "changes" in metafunc.fixturenames:
        rows = [
            pytest.param(name, backend, changes, words, id=f"{name}-{backend}-{', '.join(changes)}-{i}")
            for name, cases in REFUSED.items()
            for backend in implementations(name)
            for i, (changes, words) in enumerate(cases)
        ]
        metafunc.parametrize(["name", "backend", "changes", "words"], rows, indirect=["backend"])


def test_is_refused(name: str, backend: Backend, changes: dict[str, Any], words: str) -> None:
    def moved(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_meta else tensor.detach().to(backend.device).requires_grad_(tensor.requires_grad)

    arguments = tree_map_only(Tensor, moved, GOOD[name] | changes)
    error = TypeError if words.startswith("TypeError: ") else ValueError
    with pytest.raises(error, match=words.removeprefix("TypeError: ")):
        getattr(ops, name)(**arguments)
