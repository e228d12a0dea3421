"""Augmentation: geometry, padding, agreement with the chain of stock transforms, reproducibility."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from pspnet_fast.data import IMAGENET_MEAN, IMAGENET_STD, RandomAffineCrop, eval_transform, train_transform
from pspnet_fast.data.transforms import plan_crop

PLAIN = {"scale": (1.0, 1.0), "rotate": 0.0, "blur": 0.0, "flip": 0.0}
SEEDS = range(12)


def cells(x: Tensor, y: Tensor) -> Tensor:
    """A label map of 5x5-pixel cells, 250 values."""
    return ((x // 5) * 7 + (y // 5) * 13) % 250


def crop_positions(seed: int, size: tuple[int, int], **options: object) -> tuple[Tensor, Tensor]:
    """A crop of a float image whose channels say where a pixel is, x, y and a constant, and of its label map."""
    y, x = torch.meshgrid(torch.arange(90), torch.arange(120), indexing="ij")
    image, label = torch.stack([x, y, torch.full_like(x, 7)]).float(), cells(x, y).to(torch.uint8)
    transform = RandomAffineCrop(size, fill=(-1e4,) * 3, **options)
    torch.manual_seed(seed)
    crop, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(label))
    return crop.as_subclass(Tensor), mask.as_subclass(Tensor)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [(64, 64), (40, 150), (200, 180)])
def test_label_stays_under_its_image(seed: int, size: tuple[int, int]) -> None:
    crop, mask = crop_positions(seed, size)
    inside = mask != 255
    torch.testing.assert_close(inside, crop[2] > 0)  # the same pixels are padded

    x, y = crop[0][inside], crop[1][inside]
    assert (x >= 0).all()
    assert (y <= 89).all()
    # Where rounding could go either way (half a pixel, or the edge where bilinear positions are clamped) leave out.
    sure = ((x % 1 - 0.5).abs() > 0.01) & ((y % 1 - 0.5).abs() > 0.01)
    assert sure.float().mean() > 0.5
    torch.testing.assert_close(mask[inside][sure], cells(x.round(), y.round())[sure].to(torch.uint8))


@pytest.mark.parametrize("seed", SEEDS)
def test_scale_and_angle_are_as_requested(seed: int) -> None:
    crop, _ = crop_positions(seed, (31, 31), rotate_p=1.0, flip=0.5)
    inside = crop[2] > 0
    with_neighbours = (inside[:-1, :-1] & inside[:-1, 1:] & inside[1:, :-1]).nonzero()
    i, j = with_neighbours[len(with_neighbours) // 2].tolist()
    step_x, step_y = crop[:2, i, j + 1] - crop[:2, i, j], crop[:2, i + 1, j] - crop[:2, i, j]

    # Square pixels, at right angles, 1/scale apart, turned by no more than 10 degrees.
    assert 1 / 2.03 < step_y.norm() < 2.03
    torch.testing.assert_close(step_x.norm(), step_y.norm(), rtol=0.03, atol=0)
    assert abs(torch.dot(step_x, step_y) / step_x.norm() ** 2) < 0.03
    assert abs(math.degrees(math.atan2(step_y[0], step_y[1]))) < 10.3


def test_every_choice_is_drawn_evenly() -> None:
    steps = []
    for seed in range(300):
        crop, _ = crop_positions(seed, (3, 3), scale=(0.5, 2.0), rotate_p=0.5, flip=0.3)
        if (crop[2] > 0).all():
            steps.append(torch.cat([crop[:2, 1, 1] - crop[:2, 0, 1], crop[:1, 1, 2] - crop[:1, 1, 1]]))
    step = torch.stack(steps)

    scale = 1 / step[:, :2].norm(dim=1)
    assert (scale < 1.25).float().mean() == pytest.approx(0.5, abs=0.1)  # uniform in the factor, not in its logarithm
    assert (step[:, 0].abs() > 1e-3).float().mean() == pytest.approx(0.5, abs=0.1)  # rotated at all
    assert (step[:, 2] < 0).float().mean() == pytest.approx(0.3, abs=0.1)  # mirrored


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.6, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_equals_resize_pad_and_crop(scale: float, flip: float) -> None:
    """Without rotation: the chain that it replaces, torchvision's resize, pad, flip and crop."""
    image = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0)) * 255
    label = torch.randint(0, 250, (50, 70), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    height, width = round(50 * scale), round(70 * scale)
    options = {"scale": (scale, scale), "rotate": 0.0, "flip": flip, "fill": (9.0, 9.0, 9.0)}

    torch.manual_seed(4)
    crop, mask = RandomAffineCrop((64, 48), **options)(tv_tensors.Image(image), tv_tensors.Mask(label))

    big = v2.functional.resize(image, [height, width], antialias=False)
    rows, columns = max(64 - height, 0), max(48 - width, 0)
    padding = [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]
    big = v2.functional.pad(big, padding, fill=9.0)
    candidates = big.unfold(1, 64, 1).unfold(2, 48, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    candidates = candidates.flip(-1) if flip else candidates
    distance = (candidates - crop.as_subclass(Tensor)).abs().flatten(1).amax(1)
    assert distance.min() < 0.02  # of 255

    if scale == 1.0:  # at other scales stock nearest-neighbour rounds halves its own way
        labels = v2.functional.pad(label[None], padding, fill=255)[0]
        labels = labels.unfold(0, 64, 1).unfold(1, 48, 1).flatten(0, 1)[distance.argmin()]
        torch.testing.assert_close(mask.as_subclass(Tensor), labels.flip(-1) if flip else labels)


@pytest.mark.parametrize("angle", [0.0, 7.0, -10.0])
def test_equals_rotation_about_the_center(angle: float) -> None:
    image = torch.rand(3, 61, 61, generator=torch.Generator().manual_seed(0))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    plan = plan_crop((61, 61), (25, 25), ((cos, -sin), (sin, cos)), (30.0, 30.0))
    window = image[None, :, plan.rows, plan.columns]
    got = torch.nn.functional.grid_sample(window, plan.grid, align_corners=False)[0]

    turned = v2.functional.rotate(image, angle, interpolation=v2.InterpolationMode.BILINEAR)
    torch.testing.assert_close(got, turned[:, 18:43, 18:43], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ignore_index", [255, 19])
def test_padding_is_mean_and_ignored(ignore_index: int) -> None:
    image = torch.full((3, 10, 10), 200, dtype=torch.uint8)
    label = torch.zeros(10, 10, dtype=torch.uint8)
    crop, mask = train_transform((14, 20), **PLAIN, ignore_index=ignore_index)(image, label)

    torch.testing.assert_close(mask[2:12, 5:15], torch.zeros(10, 10, dtype=torch.uint8))
    assert (mask == 0).sum() == 100
    padding = torch.zeros(3, 180)  # the mean, normalised
    torch.testing.assert_close(crop[:, mask == ignore_index], padding, rtol=0, atol=1e-6)
    expected = (200 / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(crop[:, mask == 0], expected[:, None].expand(3, 100))


def test_crop_outside_the_picture_is_all_padding() -> None:
    """A wide picture, steeply turned: crops at its ends can miss it."""
    image, label = torch.full((3, 4, 200), 200, dtype=torch.uint8), torch.zeros(4, 200, dtype=torch.uint8)
    transform = train_transform(8, **{**PLAIN, "rotate": 90.0})
    masks = []
    for seed in range(20):
        torch.manual_seed(seed)
        crop, mask = transform(image, label)
        assert crop[:, mask == 255].abs().max() < 1e-5
        masks.append(mask)
    assert any((mask == 255).all() for mask in masks)


@pytest.mark.parametrize("transform", [train_transform((33, 47)), train_transform(32, blur=1.0), eval_transform()])
def test_types_and_ranges(transform: object) -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    label = torch.randint(0, 11, (60, 80), dtype=torch.uint8)
    kept = image.clone(), label.clone()
    crop, mask = transform(image, label)

    assert (type(crop), type(mask)) == (Tensor, Tensor)
    assert (crop.dtype, mask.dtype) == (torch.float32, torch.uint8)
    assert crop.shape[1:] == mask.shape
    assert crop.abs().max() < 3
    assert set(mask.unique().tolist()) <= {*range(11), 255}
    assert crop.is_contiguous()
    torch.testing.assert_close((image, label), kept)  # the input is left alone


def test_eval_is_normalisation_alone() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    label = torch.randint(0, 11, (5, 7), dtype=torch.uint8)
    crop, mask = eval_transform((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))(image, label)

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0]))
    expected = (image / 255 - mean) / std
    torch.testing.assert_close(crop, expected)
    torch.testing.assert_close(mask, label)


def test_blur_blurs_the_image_alone() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    label = torch.randint(0, 11, (32, 32), dtype=torch.uint8)
    sharp, _ = train_transform(32, **PLAIN)(image, label)
    soft, mask = train_transform(32, **{**PLAIN, "blur": 1.0})(image, label)

    torch.testing.assert_close(mask, label)
    expected = v2.functional.gaussian_blur(sharp, [5, 5], [1.1, 1.1])
    torch.testing.assert_close(soft, expected, rtol=0, atol=1e-4)
    assert (soft - sharp).abs().mean() > 0.1


class Noise(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, 40, 60), np.uint8))
        return train_transform(24)(image, image[0] % 11)


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_seed_fixes_every_crop(workers: int) -> None:
    def epoch(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        loader = DataLoader(Noise(), batch_size=3, shuffle=True, num_workers=workers)
        return [tensor for batch in loader for tensor in batch]

    first, again, other = epoch(1), epoch(1), epoch(2)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], other[0])


def test_no_other_generator_is_touched() -> None:
    states = random.getstate(), np.random.get_state()[1].copy()
    Noise()[0]
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 0}, "crop=0 must be positive"),
        ({"crop": (5, -1)}, r"crop=\(5, -1\) must be positive"),
        ({"scale": (2.0, 0.5)}, r"scale=\(2.0, 0.5\) must be"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\) must be"),
        ({"rotate": -1.0}, "rotate=-1.0 must be an angle"),
        ({"blur": 2.0}, "blur=2.0 must be a probability"),
        ({"flip": -0.5}, "flip=-0.5 must be a probability"),
        ({"jitter": 1.5}, "jitter=1.5 must be 0 .. 1"),
        ({"cat_max_ratio": 0}, "cat_max_ratio=0 must be a share"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\)"),
        ({"std": (0.2, 0.0, 0.2)}, "std positive"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(**{"crop": 8, **arguments})


def test_other_inputs_are_refused() -> None:
    boxes = tv_tensors.BoundingBoxes(torch.zeros(1, 4), format="XYXY", canvas_size=(8, 8))
    with pytest.raises(TypeError, match="not BoundingBoxes"):
        RandomAffineCrop((4, 4))(tv_tensors.Image(torch.zeros(3, 8, 8)), boxes)


def test_colour_jitter_keeps_the_map_and_is_off_by_default() -> None:
    image, label = torch.full((3, 40, 50), 100, dtype=torch.uint8), torch.zeros(40, 50, dtype=torch.uint8)
    options = {**PLAIN, "mean": (0, 0, 0), "std": (1, 1, 1)}
    plain = [train_transform(32, **options)(image, label)[0] for _ in range(2)]
    torch.testing.assert_close(plain[0], torch.full((3, 32, 32), 100 / 255))
    torch.manual_seed(0)
    jittered = [train_transform(32, jitter=0.4, **options)(image, label) for _ in range(4)]
    means = {round(float(picture.mean()), 3) for picture, _ in jittered}
    assert len(means) == 4
    assert all(float(picture.min()) >= 0 and float(picture.max()) <= 1 for picture, _ in jittered)


def test_a_transform_of_ones_own_comes_first() -> None:
    image, label = torch.zeros(3, 40, 50, dtype=torch.uint8), torch.zeros(40, 50, dtype=torch.uint8)
    seen = []

    def own(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((image.dtype, image.shape))
        return image + 255, label + 1

    found = train_transform(32, own=own, **PLAIN, mean=(0, 0, 0), std=(1, 1, 1))(image, label)
    assert seen == [(torch.uint8, (3, 40, 50))]
    assert (found[0].unique().tolist(), found[1].unique().tolist()) == ([1.0], [1])


def test_crops_that_one_class_fills_are_drawn_again() -> None:
    image, label = torch.zeros(3, 200, 200, dtype=torch.uint8), torch.zeros(200, 200, dtype=torch.uint8)
    label[:, 100:] = 1
    label[:40] = 255
    shares = {}
    for ratio in (1.0, 0.75):
        torch.manual_seed(0)
        crop = train_transform(60, cat_max_ratio=ratio, **PLAIN)
        labels = [crop(image, label)[1] for _ in range(40)]
        filled = [max(int((x == 0).sum()), int((x == 1).sum())) > 0.75 * int((x != 255).sum()) for x in labels]
        shares[ratio] = sum(filled) / len(filled)
    assert shares[1.0] > 0.6
    assert shares[0.75] < 0.3
