"""Results and gradients at the sizes that training has, against float64, in every precision and on every back end."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import assert_as_exact_as_stock
from real_sizes import (
    DEVICE,
    DTYPES,
    LAYOUT,
    blocky_labels,
    check_exact_by_image,
    losses_by_image,
    random,
    require_kernel,
)
from torch import Tensor

import pspnet_fast
from pspnet_fast import reference
from pspnet_fast.ops.pyramid_conv import pyramid_conv_norm_relu
from pspnet_fast.ops.pyramid_pool import pyramid_levels
from pspnet_fast.reference import NormStatistics

AUX_WEIGHT = 0.4
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
CROP, CITY = ((60, 60), (473, 473)), ((64, 128), (512, 1024))


def as_tuple(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    return lambda *inputs: (function(*inputs),)


@DTYPE
@LAYOUT
@pytest.mark.parametrize("shape", [(8, 2048, 60, 60), (2, 2048, 64, 128), (2, 512, 97, 97)], ids=str)
def test_pyramid_pool(backend: str, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype, channels_last=channels_last)
    check_exact_by_image(as_tuple(pspnet_fast.pyramid_pool), as_tuple(reference.pyramid_pool), [x])


@DTYPE
@LAYOUT
def test_pyramid_conv(backend: str, channels_last: bool, dtype: torch.dtype) -> None:
    x = random(2, 2048, 60, 60, dtype=dtype, channels_last=channels_last)
    levels = random(2, 512, 50, dtype=dtype)
    weight = random(512, 4096, 3, 3, dtype=dtype) / 192  # results of about unit size, as after initialisation
    fused, definition = as_tuple(pspnet_fast.pyramid_conv), as_tuple(reference.pyramid_conv)
    check_exact_by_image(fused, definition, [x, levels], [weight])


@DTYPE
@LAYOUT
@pytest.mark.parametrize("size", [(128, 128), (128, 256)], ids=str)
def test_pyramid_conv_of_large_levels(
    backend: str, size: tuple[int, int], channels_last: bool, dtype: torch.dtype
) -> None:
    """The levels of UPerNet's neck, of images of 512x512 and 512x1024."""
    sizes = [(size[0] // factor, size[1] // factor) for factor in (2, 4, 8)]
    x = random(2, 256, *size, dtype=dtype, channels_last=channels_last)
    levels = random(2, 256, sum(h * w for h, w in sizes), dtype=dtype)
    weight = random(256, 1024, 3, 3, dtype=dtype) / 96
    fused, definition = (
        as_tuple(functools.partial(function, bins=sizes, align_corners=False))
        for function in (pspnet_fast.pyramid_conv, reference.pyramid_conv)
    )
    check_exact_by_image(fused, definition, [x, levels], [weight])


@DTYPE
@LAYOUT
def test_pyramid_in_evaluation_mode(backend: str, channels_last: bool, dtype: torch.dtype) -> None:
    """Levels, then the convolution over them, each against the definition on the same input."""
    x = random(2, 2048, 64, 128, dtype=dtype, channels_last=channels_last)
    projections = [random(512, 2048, 1, 1, dtype=dtype) / 45 for _ in range(4)]
    weight = random(512, 4096, 3, 3, dtype=dtype) / 192
    mean, root, gamma, beta = random(4, 512)
    norm = NormStatistics(mean, root.square() + 0.5, gamma, beta, 1e-5)  # in float32, whatever the dtype of the maps

    def norm_in(to: torch.dtype) -> NormStatistics:
        return NormStatistics(*(t.to(to) for t in norm[:4]), norm.eps)

    with torch.no_grad():
        levels = pyramid_levels(x, projections, [norm] * 4)
        stock, exact = (
            reference.pyramid_levels(x.to(to), [p.to(to) for p in projections], [norm_in(to)] * 4)
            for to in (dtype, torch.float64)
        )
        assert_as_exact_as_stock(levels, stock, exact, dtype, "levels")

        y = pyramid_conv_norm_relu(x, levels, weight, norm)
        stock, exact = (
            reference.pyramid_conv_norm_relu(*(t.to(to) for t in (x, levels, weight)), norm_in(to))
            for to in (dtype, torch.float64)
        )
        assert_as_exact_as_stock(y, stock, exact, dtype, "y")


@DTYPE
@LAYOUT
@pytest.mark.parametrize("size", [(60, 60), (90, 90), (97, 97)], ids=str)
def test_pyramid_concat(backend: str, size: tuple[int, int], channels_last: bool, dtype: torch.dtype) -> None:
    x, levels = random(2, 2048, *size, dtype=dtype, channels_last=channels_last), random(2, 512, 50, dtype=dtype)
    check_exact_by_image(as_tuple(pspnet_fast.pyramid_concat), as_tuple(reference.pyramid_concat), [x, levels])


def summed(main: Tensor, aux: Tensor, target: Tensor) -> Tensor:
    """Both losses summed over the pixels, in stock operators and the logits' dtype."""

    def loss(z: Tensor) -> Tensor:
        up = F.interpolate(z, target.shape[-2:], mode="bilinear", align_corners=True)
        return F.cross_entropy(up, target, ignore_index=255, reduction="sum")

    return loss(main) + AUX_WEIGHT * loss(aux)


@DTYPE
@pytest.mark.parametrize("scale", [3.0, 60.0], ids=["usual", "far apart"])
@pytest.mark.parametrize(("classes", "batch", "sizes"), [(150, 8, CROP), (19, 16, CROP), (19, 4, CITY)], ids=str)
def test_dual_cross_entropy(
    backend: str,
    classes: int,
    batch: int,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    scale: float,
    dtype: torch.dtype,
) -> None:
    require_kernel("dual_cross_entropy", backend)
    low, high = sizes
    layout = dtype != torch.float32  # as training has it
    logits = [scale * random(batch, classes, *low, dtype=dtype, channels_last=layout) for _ in range(2)]
    target = blocky_labels(batch, *high, classes)
    leaves = [z.detach().requires_grad_() for z in logits]
    result = pspnet_fast.dual_cross_entropy(*leaves, target, aux_weight=AUX_WEIGHT)
    valid = int((target != 255).sum())
    # Of the sum, not of the mean: a pixel's share in a mean of millions underflows in float16.
    gradients = torch.autograd.grad(result.loss, leaves, result.loss.new_tensor(valid))

    exact = losses_by_image(summed, logits, target, torch.float64)
    stock = losses_by_image(summed, logits, target, dtype)
    torch.testing.assert_close(result.loss.double(), exact[0] / valid, rtol=1e-5, atol=0)
    torch.testing.assert_close(result.loss, result.main + AUX_WEIGHT * result.aux)
    for name, a, s, e in zip(("main", "aux"), gradients, stock[1], exact[1], strict=True):
        assert a.dtype == dtype
        assert backend == "reference" or a.stride() == logits[0].stride()
        assert_as_exact_as_stock(a, s, e, dtype, f"gradient of {name}")


@DTYPE
def test_upsample_cross_entropy_with_options(backend: str, dtype: torch.dtype) -> None:
    require_kernel("upsample_cross_entropy", backend)
    logits, target = random(4, 150, 60, 60, dtype=dtype), blocky_labels(4, 473, 473, 150)
    options = {"label_smoothing": 0.1, "weight": torch.rand(150, device=DEVICE) + 0.5}
    fused = lambda z: (pspnet_fast.upsample_cross_entropy(z, target, reduction="none", **options),)  # noqa: E731
    leaf = logits.detach().requires_grad_()
    (loss,) = fused(leaf)
    upstream = torch.randn_like(loss)
    (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    for i in range(target.shape[0]):
        parts = {}
        for kind, precision in (("stock", torch.float32), ("exact", torch.float64)):
            image = logits[i : i + 1].detach().to(precision).requires_grad_()
            per_pixel = reference.upsample_cross_entropy(image, target[i : i + 1], reduction="none", **options)
            parts[kind] = per_pixel, *torch.autograd.grad(per_pixel, image, upstream[i : i + 1].to(precision))
        for name, a, s, e in zip(("loss", "gradient"), (loss, gradient), parts["stock"], parts["exact"], strict=True):
            assert_as_exact_as_stock(a[i : i + 1], s, e, dtype, f"{name} of image {i}")


@DTYPE
def test_upsample_argmax(backend: str, dtype: torch.dtype) -> None:
    logits = random(4, 19, 128, 256, dtype=dtype)
    labels = pspnet_fast.upsample_argmax(logits, (1024, 2048))
    for i in range(labels.shape[0]):
        up = F.interpolate(logits[i : i + 1].double(), (1024, 2048), mode="bilinear", align_corners=True)
        chosen = up.gather(1, labels[i : i + 1].unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(chosen, up.amax(dim=1), rtol=1e-5, atol=1e-5)


@DTYPE
@LAYOUT
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_upsample_add(backend: str, align_corners: bool, channels_last: bool, dtype: torch.dtype) -> None:
    """The levels of SegFormer's head and of UPerNet's neck, and those of a pyramid."""
    for size, bins in (((128, 128), ((64, 64), (32, 32), (16, 16))), ((96, 130), (1, 2, 3, 6))):
        base = random(2, 256, *size, dtype=dtype, channels_last=channels_last)
        levels = random(2, 256, sum(h * w for h, w in reference.level_sizes(bins)), dtype=dtype)
        fused, definition = (
            lambda base, levels, function=function, bins=bins: (
                function(levels, base, bins=bins, align_corners=align_corners),
            )
            for function in (pspnet_fast.upsample_add, reference.upsample_add)
        )
        check_exact_by_image(fused, definition, [base, levels])


@DTYPE
def test_upsample_softmax_add(backend: str, dtype: torch.dtype) -> None:
    logits = random(2, 150, 60, 60, dtype=dtype)
    taps = pspnet_fast.AxisTaps(torch.arange(540, device=DEVICE).view(270, 2) % 473, torch.rand(270, 2, device=DEVICE))
    for options, height in (({}, 473), ({"rows": taps, "flip": True}, 270)):
        total = torch.zeros(2, 150, height, 473, device=DEVICE)
        pspnet_fast.upsample_softmax_add(total, logits, (473, 473), **options)
        for image, added in zip(logits.split(1), total.split(1), strict=True):
            stock = reference.upsample_softmax_add(torch.zeros_like(added), image, (473, 473), **options)
            zeros = torch.zeros_like(added, dtype=torch.float64)
            exact = reference.upsample_softmax_add(zeros, image.double(), (473, 473), **options)
            assert_as_exact_as_stock(added, stock, exact, dtype)


@pytest.mark.parametrize("classes", [19, 150])
def test_network(backend: str, classes: int) -> None:
    """A training step's losses and the labels of PSPNet50 against the stock network in float64."""
    from plain_pspnet import PlainPSPNet

    plain = PlainPSPNet(layers=50, classes=classes, dropout=0.0).to(DEVICE)
    fast = pspnet_fast.PSPNet(layers=50, classes=classes, dropout=0.0, pretrained=False).to(DEVICE)
    fast.load_state_dict(plain.state_dict())
    plain = plain.double()
    x, y = random(2, 3, 473, 473), blocky_labels(2, 473, 473, classes)
    _, main, aux = fast(x, y)
    (main + AUX_WEIGHT * aux).backward()
    _, exact_main, exact_aux = plain(x.double(), y)
    (exact_main + AUX_WEIGHT * exact_aux).backward()
    torch.testing.assert_close(
        torch.stack([main, aux]).double(), torch.stack([exact_main, exact_aux]), rtol=1e-4, atol=0
    )
    expected = dict(plain.named_parameters())
    for name in ("cls.4.weight", "cls.0.weight", "ppm.features.0.1.weight", "aux.0.weight"):
        gradient = fast.get_parameter(name).grad
        assert gradient is not None
        error = torch.linalg.vector_norm(gradient.double() - expected[name].grad)
        assert error <= 1e-2 * torch.linalg.vector_norm(expected[name].grad), f"gradient of {name}: {error:.3g}"

    # The running statistics of the two are now equal to rounding; random weights leave few pixels undecided.
    with torch.no_grad():
        labels = fast.eval().predict(x)
        assert (labels != plain.eval()(x.double()).argmax(dim=1)).double().mean() < 1e-2
