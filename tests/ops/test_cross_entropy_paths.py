"""What kernels of the cross-entropy do differently from one input to the next, and must not show in their results.

Cells whose logits lie close together may be summed by geometric progressions, others not; maps are cut into chunks of
rows, rows into vectors, tall and wide cells into tiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import draw_options, draw_target, stock_loss
from exactness import assert_as_exact_as_stock
from running import CUDA_ON_CPU, INTERPRETED, Backend, check_exactness, check_same_bits, differentiate, random
from torch import Tensor

from pspnet_fast import dual_cross_entropy, upsample_cross_entropy
from pspnet_fast.extension import EXTENSION

OPERATOR = "upsample_cross_entropy"


def check(
    backend: Backend, logits: Tensor, high: tuple[int, int], dtype: torch.dtype = torch.float32, **options: Any
) -> None:
    target = draw_target((logits.shape[0], *high), logits.shape[1], device=backend.device)
    drawn = draw_options(target, logits.shape[1], **options)
    check_exactness(
        lambda z: upsample_cross_entropy(z, target, **drawn),
        lambda z: stock_loss(z, target, **drawn),
        [logits.to(dtype)],
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize(
    ("classes", "low", "high"),
    [
        (2, (20, 3), (153, 17)),  # several chunks of rows
        (3, (2, 37), (9, 289)),  # several vectors of cells
        (19, (5, 6), (41, 49)),
        (3, (2, 2), (71, 40)),  # cells of several tiles
        (150, (2, 3), (9, 17)),
        (3, (8, 9), (65, 74)),  # cells of 8 and of 9 columns
        (3, (9, 10), (18, 21)),  # of 2 and 3
        (3, (7, 5), (7, 41)),  # one axis only
        (3, (2, 40), (4, 43)),  # of Triton's kernels three blocks of cells, two of columns
        (9, (2, 17), (5, 40)),  # two blocks of classes
        (2, (9, 3), (4, 2)),  # cells without a pixel
        (2, (4, 4), (4, 4)),
        (2, (5, 1), (1, 6)),
        (1, (2, 3), (5, 5)),
    ],
    ids=str,
)
def test_shapes(
    backend: Backend, classes: int, low: tuple[int, int], high: tuple[int, int], align_corners: bool, weighted: bool
) -> None:
    if INTERPRETED and (weighted or classes == 150):
        pytest.skip("slow in Triton's interpreter, and covered by test_options")
    logits = random(1, classes, *low, device=backend.device) * 3
    options = {"weighted": True, "pixels_weighted": True, "label_smoothing": 0.1} if weighted else {}
    check(backend, logits, high, align_corners=align_corners, reduction="sum", **options)


@pytest.mark.parametrize("scale", [20.0, 60.0, 300.0, 1e4])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_far_apart(backend: Backend, reduction: str, scale: float) -> None:
    check(backend, random(1, 7, 5, 6, device=backend.device) * scale, (33, 41), reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_some_logits_far_apart(backend: Backend, dtype: torch.dtype) -> None:
    width = 12 if INTERPRETED else 40
    logits = random(1, 5, 6, width, device=backend.device)
    logits[0, 1, 2, 3] = 200
    logits[0, 2, 4, width // 2] = -500
    check(backend, logits, (41, 8 * width - 7), dtype)


def check_losses(logits: Tensor, target: Tensor, **options: Any) -> None:
    """Means and maps hold to the rule, and no pixel's loss is negative."""
    for reduction in ("mean", "none"):
        options["reduction"] = reduction
        loss, stock = upsample_cross_entropy(logits, target, **options), stock_loss(logits, target, **options)
        assert_as_exact_as_stock(loss, stock, stock_loss(logits.double(), target, **options), torch.float32, reduction)
        assert loss.min() >= 0


def best_classes(logits: Tensor, high: tuple[int, int], align_corners: bool = True) -> Tensor:
    up = F.interpolate(logits.double(), high, mode="bilinear", align_corners=align_corners)
    return up.argmax(dim=1)


def test_label_nearly_certain(backend: Backend) -> None:
    logits = torch.tensor([92.0, -18, -131, 34, -65, -84, 24, 50, -43, -24, -36, 11], device=backend.device)
    logits = logits.view(1, 3, 2, 2)
    target = best_classes(logits, (7, 7))
    assert upsample_cross_entropy(logits, target, reduction="none").min() >= 0
    torch.testing.assert_close(upsample_cross_entropy(logits, target).item(), 0.015181548, rtol=4e-6, atol=0)


# Own arg-max as labels, with other labels in places, ignored ones, and one label for each block of pixels.
@pytest.mark.parametrize("labels", ["best", "mostly", "blocks"])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("scale", [20.0, 60.0])
def test_labels_mostly_right(backend: Backend, scale: float, classes: int, align_corners: bool, labels: str) -> None:
    logits, high = random(1, classes, 4, 5, device=backend.device) * scale, (25, 37)
    target = best_classes(logits, high, align_corners)
    if labels == "mostly":
        wrong = torch.rand(target.shape) < 0.05
        target[wrong.to(backend.device)] = classes - 1
        target[:, 3:5] = 255
    if labels == "blocks":
        target = target[:, ::12, ::12].repeat_interleave(12, 1).repeat_interleave(12, 2)[:, :25, :37]
    check_losses(logits, target, align_corners=align_corners)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_nearly_uniform_logits(backend: Backend, classes: int, scale: float) -> None:
    low = 3 if INTERPRETED else 9
    logits = random(1, classes, low, low, device=backend.device) * scale
    high = (8 * low - 7, 8 * low - 7)
    check_losses(logits, draw_target((1, *high), classes, ignored=0, device=backend.device))
    check_losses(logits, best_classes(logits, high))


# On both sides of the range within which cells are summed by progressions, 76.
@pytest.mark.parametrize("span", [74.0, 75.9, 76.1, 90.0])
def test_range_of_progressions(backend: Backend, span: float) -> None:
    logits = torch.zeros(1, 3, 4, 4, device=backend.device)
    logits[0, 0] = random(4, 4, device=backend.device)
    logits[0, 1, ::2, ::2] = -span
    logits[0, 2, 1::2, 1::2] = -span
    check(backend, logits, (25, 25))


@pytest.mark.parametrize(
    "values", [(value, value) for value in (torch.nan, torch.inf, -torch.inf)] + [(torch.inf, -torch.inf)], ids=str
)
def test_logits_that_are_not_finite(backend: Backend, values: tuple[float, float]) -> None:
    logits = random(1, 4, 5, 6, device=backend.device)
    logits[0, 1, 2, 3], logits[0, 3, 0, 0] = values
    target = draw_target((1, 33, 41), 4, device=backend.device)
    for reduction in ("none", "sum"):
        actual, stock = (
            differentiate(lambda z, loss=loss, how=reduction: loss(z, target, reduction=how), [logits])
            for loss in (upsample_cross_entropy, stock_loss)
        )
        torch.testing.assert_close(actual[0], stock[0], equal_nan=True)
        # Wherever PyTorch's gradient is finite, so is ours.
        finite = stock[1][0].isfinite()
        assert finite.any()
        torch.testing.assert_close(actual[1][0][finite], stock[1][0][finite])


def test_a_masked_class_has_no_share(backend: Backend) -> None:
    logits = random(1, 3, 2, 3, device=backend.device)
    logits[:, 0] = -1e30
    labels = draw_target((1, 5, 7), 2, device=backend.device)
    target = torch.where(labels == 255, labels, labels + 1)
    (loss,), (gradient,) = differentiate(lambda z: upsample_cross_entropy(z, target), [logits])
    (expected,), (of_others,) = differentiate(lambda z: stock_loss(z, labels), [logits[:, 1:]])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, F.pad(of_others, (0, 0, 0, 0, 1, 0)))


def test_both_heads_at_once_are_each_on_its_own(backend: Backend) -> None:
    rows = 5 if INTERPRETED else 17
    main, aux = (random(1, 5, rows, 5, device=backend.device) * 3 for _ in range(2))
    target = draw_target((1, 8 * rows - 7, 33), 5, device=backend.device)
    both = differentiate(lambda m, a: dual_cross_entropy(m, a, target)[1:], [main, aux])
    for i, logits in enumerate((main, aux)):
        alone = differentiate(lambda z: upsample_cross_entropy(z, target), [logits])
        torch.testing.assert_close((both[0][i], both[1][i]), (alone[0][0], alone[1][0]), rtol=0, atol=0)


@pytest.mark.parametrize(("columns", "passes"), [(5, 1), (11, 2)])
def test_a_batch_is_its_images(backend: Backend, columns: int, passes: int) -> None:
    """To the bit, although a large batch is cut into other pieces than a single image.

    Not where CUDA's kernel scores a cell in several passes: a node on the edge of a piece sums them in another order.
    264 images are cut into pieces of three rows of cells on a GPU of 132 multiprocessors.
    """
    if INTERPRETED:
        pytest.skip("slow in Triton's interpreter")
    logits = random(264, 2, 17, 2, device=backend.device) * 3
    target = draw_target((264, 33, columns), 2, device=backend.device)

    def gradient(images: slice) -> Tensor:
        return differentiate(lambda z: upsample_cross_entropy(z, target[images], reduction="sum"), [logits[images]])[1][
            0
        ]

    whole = gradient(slice(None))
    tolerance = 1e-6 if passes > 1 and backend.name == "cuda" else 0.0
    for i in (0, 263):
        torch.testing.assert_close(whole[i : i + 1], gradient(slice(i, i + 1)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_same_bits_for_any_number_of_threads(backend: Backend, reduction: str) -> None:
    rows = 5 if INTERPRETED else 33
    target = draw_target((2, 8 * rows - 7, 33), 5, device=backend.device)
    logits = random(2, 5, rows, 5, device=backend.device)
    logits[0, 1, 3, 3] = 200
    threads = (1, 1) if backend.name == "reference" or INTERPRETED else (1, 2, 3, 4)
    check_same_bits(lambda z: upsample_cross_entropy(z, target, reduction=reduction), [logits], threads)


def test_several_python_threads_at_once(backend: Backend) -> None:
    if INTERPRETED:
        pytest.skip("Triton's interpreter keeps its state in globals")
    target = draw_target((2, 65, 65), 5, device=backend.device)
    inputs = [random(2, 5, 9, 9, device=backend.device) for _ in range(8)]

    def gradient(logits: Tensor) -> Tensor:
        return differentiate(lambda z: upsample_cross_entropy(z, target), [logits])[1][0]

    expected = [gradient(z) for z in inputs]
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(gradient, inputs)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_nothing_complains_of_nondeterminism(backend: Backend, reduction: str) -> None:
    if backend.name == "reference":
        pytest.skip("stock operators have no deterministic kernel for all of it on every device")
    target = draw_target((1, 17, 17), 3, device=backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        differentiate(
            lambda m, a: dual_cross_entropy(m, a, target, reduction=reduction),
            [random(1, 3, 3, 3, device=backend.device) for _ in range(2)],
        )
    finally:
        torch.use_deterministic_algorithms(False)


def test_more_than_2_31_pixels_times_classes(backend: Backend) -> None:
    if backend.name == "reference" or INTERPRETED or CUDA_ON_CPU is not None:
        pytest.skip("builds the logits of every pixel, or takes hours")
    free = torch.cuda.mem_get_info()[0] if backend.device.type == "cuda" else available_memory()
    if free < 6 * 2**30:
        pytest.skip(f"needs 6 GiB of memory, {free / 2**30:.1f} are free")
    image = random(1, 512, 256, 128, device=backend.device)
    # Cells of 8 by 8 pixels, which take one pass: a node's terms are summed in the same order whatever the batch is.
    target = draw_target((8, 255 * 8 + 1, 127 * 8 + 1), 512, -1, torch.int32, backend.device)
    assert 512 * target.numel() > 2**32
    torch.set_num_threads(os.cpu_count() or 1)

    (total,), (gradient,) = differentiate(
        lambda z: upsample_cross_entropy(z, target, ignore_index=-1, reduction="sum"), [image.expand(8, -1, -1, -1)]
    )
    parts = [
        differentiate(
            lambda z, i=i: upsample_cross_entropy(z, target[i : i + 1], ignore_index=-1, reduction="sum"), [image]
        )
        for i in (0, 7)
    ]
    torch.testing.assert_close(gradient[:1], parts[0][1][0], rtol=0, atol=0)
    torch.testing.assert_close(gradient[7:], parts[1][1][0], rtol=0, atol=0)
    torch.testing.assert_close(total, 4 * (parts[0][0][0] + parts[1][0][0]), rtol=1e-3, atol=0)


def available_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets(isa: str) -> None:
    """The same file and the pyramid's, in a process whose kernels are those of an older processor."""
    if EXTENSION.cpu is not None:
        pytest.skip(f"the extension is not loaded: {EXTENSION.cpu}")
    here = Path(__file__).parent
    files = [here / f"test_{name}.py" for name in ("cross_entropy_paths", "operators", "upsample_argmax")]
    files += here.glob("test_pyramid_*.py")
    chosen = "cpu and not any_ and not compile and not export and not instruction_sets and not 2_31 and not reference"
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *map(str, files)]
    code = f"""
import sys, pytest, torch
from pspnet_fast import _C
assert _C.cpu_capability() in ({isa!r}, "portable"), _C.cpu_capability()
sys.exit(pytest.main({options!r}))
"""
    environment = {**os.environ, "PSPNET_FAST_ISA": isa, "PSPNET_FAST_EXPECT_BACKENDS": "cpu"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
