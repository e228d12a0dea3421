"""Augmentation for segmentation, on torchvision.transforms.v2.

The training recipe is PSPNet's (Zhao et al. 2017, section 5.1): scale the picture by a factor drawn uniformly from
0.5 .. 2, rotate it by an angle drawn uniformly from -10 .. 10 degrees in half of the cases, blur half of the pictures
with a 5x5 Gaussian, mirror half of them, and cut out a crop, padded with the mean colour and label 255.

Scaling, rotation, mirroring and cropping are one affine map, so `RandomAffineCrop` composes the map first and samples
the picture once, at the pixels of the crop. A chain of whole-picture steps resizes, rotates and blurs up to four times
the pixels of the picture, of which the crop then keeps a few per cent, and interpolates twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pspnet_fast.data.classes import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CropPlan:
    """Where the pixels of a crop lie in the picture.

    Args:
        rows, columns: the part of the picture under the crop.
        grid: [1, h, w, 2], the (x, y) of each of the crop's pixels in that part, counted from -1 to 1 between the outer
            edges of its first and last pixel (`grid_sample` with align_corners=False).
        outside: [h, w], the pixels that the picture does not reach; None where it reaches all.
    """

    rows: slice
    columns: slice
    grid: Tensor
    outside: Tensor | None


class RandomAffineCrop(v2.Transform):
    """Random scale, rotation, mirroring and crop in a single interpolation.

    Images (uint8 or float, [..., H, W]) become float32 of the same range, sampled bilinearly; masks keep their dtype,
    sampled at the nearest pixel. What lies outside the picture becomes `fill` in images and `ignore_index` in masks.

    Scales, angles and positions are distributed as in a chain of whole-picture steps. Where a rotated picture exceeds
    its old frame, the crop shows the picture, and such a chain padding.

    Args:
        size: (h, w) of the crop.
        scale: range of the scaling factor, drawn uniformly.
        rotate: largest angle in degrees, either way.
        rotate_p: how many of the pictures are rotated.
        flip: how many of the pictures are mirrored.
        cat_max_ratio: where a class has a larger share of a crop's labels, up to nine others are drawn; 1 is off.
        fill: one value a channel for images, in the image's range.
        ignore_index: the value for masks.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        rotate: float = 10.0,
        rotate_p: float = 0.5,
        flip: float = 0.5,
        cat_max_ratio: float = 1.0,
        fill: Sequence[float] = (0.0, 0.0, 0.0),
        ignore_index: int = IGNORE,
    ) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.rotate = rotate
        self.rotate_p = rotate_p
        self.flip = flip
        self.cat_max_ratio = cat_max_ratio
        self.fill = tuple(fill)
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the map, again where one class fills it."""
        size = v2.functional.get_size(flat_inputs[0])
        plan = self._draw(*size)
        mask = next((value for value in flat_inputs if isinstance(value, tv_tensors.Mask)), None)
        for _ in range(9 if self.cat_max_ratio < 1 and mask is not None else 0):
            label = _sample(mask.as_subclass(Tensor), plan, (self.ignore_index,), "nearest")  # type: ignore[union-attr]
            counts = label[label != self.ignore_index].unique(return_counts=True)[1]
            if len(counts) > 1 and counts.max() <= self.cat_max_ratio * counts.sum():
                break
            plan = self._draw(*size)
        return {"plan": plan}

    def _draw(self, height: int, width: int) -> CropPlan:
        """Every call draws the same six numbers, so that no choice shifts the ones after it."""
        u_scale, u_rotate, u_angle, u_flip, u_top, u_left = torch.rand(6, dtype=torch.float64).tolist()

        # As a resize would: whole pixels, and from them the exact factor of each axis.
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * u_scale
        scaled_h, scaled_w = max(1, round(height * factor)), max(1, round(width * factor))
        angle = math.radians(self.rotate * (2 * u_angle - 1)) if u_rotate < self.rotate_p else 0.0
        mirror = -1.0 if u_flip < self.flip else 1.0

        # Middle of the crop, measured from the middle of the scaled picture.
        crop_h, crop_w = self.size
        dy = _offset(scaled_h, crop_h, u_top) + crop_h / 2 - scaled_h / 2
        dx = _offset(scaled_w, crop_w, u_left) + crop_w / 2 - scaled_w / 2

        sy, sx = height / scaled_h, width / scaled_w
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = ((sx * cos * mirror, -sx * sin), (sy * sin * mirror, sy * cos))
        center = (
            (width - 1) / 2 + sx * (cos * dx - sin * dy),
            (height - 1) / 2 + sy * (sin * dx + cos * dy),
        )
        return plan_crop((height, width), self.size, matrix, center)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            label = _sample(inpt.as_subclass(Tensor), params["plan"], (self.ignore_index,), "nearest")
            return tv_tensors.Mask(label.to(inpt.dtype))
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.Image(_sample(inpt.as_subclass(Tensor), params["plan"], self.fill, "bilinear"))
        raise TypeError(f"RandomAffineCrop takes tv_tensors.Image and tv_tensors.Mask, not {type(inpt).__name__}")


class _ByteColors(v2.Transform):
    """A transform of float pictures of 0 .. 1, on those of 0 .. 255."""

    def __init__(self, inner: v2.Transform) -> None:
        super().__init__()
        self.inner = inner

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self.inner(inpt / 255) * 255 if isinstance(inpt, tv_tensors.Image) else inpt


class SegmentationTransform:
    """Torchvision transforms on a plain (image, label) pair: image [3, H, W], label [H, W], tensors in and out."""

    def __init__(
        self, *transforms: v2.Transform, own: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    ) -> None:
        self.transforms = v2.Compose(list(transforms))
        self.own = own  # called before them

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if self.own is not None:
            image, label = self.own(image, label)
        pair = self.transforms(tv_tensors.Image(image), tv_tensors.Mask(label))
        return pair[0].as_subclass(Tensor), pair[1].as_subclass(Tensor)

    def __repr__(self) -> str:
        return f"SegmentationTransform({self.transforms})"


def train_transform(
    crop: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    rotate: float = 10.0,
    blur: float = 0.5,
    flip: float = 0.5,
    cat_max_ratio: float = 1.0,
    jitter: float = 0.0,
    own: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    ignore_index: int = IGNORE,
) -> SegmentationTransform:
    """The training recipe: (image uint8 [3, H, W], label uint8 [H, W]) -> (float32 [3, h, w], uint8 [h, w]).

    All randomness comes from torch's generator: `torch.manual_seed` (in DataLoader workers: the loader's generator)
    fixes every picture.

    Args:
        crop: size (h, w) of the result, or one number for both.
        scale: range of the scaling factor, drawn uniformly.
        rotate: largest rotation in degrees; half of the pictures are rotated at all.
        blur: how many of the pictures are blurred (5x5 Gaussian, sigma 1.1).
        flip: how many of the pictures are mirrored.
        cat_max_ratio: see `RandomAffineCrop`.
        jitter: how far brightness, contrast and saturation vary, as factors of 1 - jitter .. 1 + jitter; the hue by a
            quarter of it (torchvision's ColorJitter). 0 leaves colours alone.
        own: called first, with the picture uint8 [3, H, W] and its label uint8 [H, W]; returns such a pair.
        mean, std: normalisation of each channel, for values of 0 .. 1. Padding is `mean`, hence 0 in the result.
        ignore_index: label of the padding.

    Raises:
        ValueError: an argument is out of its range.
    """
    size = (crop, crop) if isinstance(crop, int) else (int(crop[0]), int(crop[1]))
    for name, value, fits, what in (
        ("crop", crop, min(size) >= 1, "positive, (height, width) or one number for both"),
        ("scale", scale, 0 < scale[0] <= scale[1], "(low, high) with 0 < low <= high"),
        ("rotate", rotate, 0 <= rotate <= 180, "an angle of 0 .. 180 degrees"),
        ("cat_max_ratio", cat_max_ratio, 0 < cat_max_ratio <= 1, "a share above 0, at most 1"),
        ("blur", blur, 0 <= blur <= 1, "a probability, 0 .. 1"),
        ("flip", flip, 0 <= flip <= 1, "a probability, 0 .. 1"),
        ("jitter", jitter, 0 <= jitter <= 1, "0 .. 1"),
    ):
        if not fits:
            raise ValueError(f"{name}={value!r} must be {what}")
    _check_normalisation(mean, std)

    return SegmentationTransform(
        RandomAffineCrop(
            size,
            scale=scale,
            rotate=rotate,
            flip=flip,
            cat_max_ratio=cat_max_ratio,
            fill=[255 * m for m in mean],
            ignore_index=ignore_index,
        ),
        *([] if jitter == 0 else [_ByteColors(v2.ColorJitter(jitter, jitter, jitter, jitter / 4))]),
        # After the crop, where there is least to blur; sigma is what OpenCV takes for a 5x5 kernel.
        v2.RandomApply([v2.GaussianBlur(5, sigma=1.1)], p=blur),
        v2.Normalize([255 * m for m in mean], [255 * s for s in std], inplace=True),
        own=own,
    )


def eval_transform(mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> SegmentationTransform:
    """Normalisation alone, at full size: (uint8 [3, H, W], uint8 [H, W]) -> (float32 [3, H, W], uint8 [H, W])."""
    _check_normalisation(mean, std)
    return SegmentationTransform(
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std), inplace=True)
    )


def _offset(picture: int, crop: int, u: float) -> int:
    """First pixel of the crop: uniform where the picture is larger, else centered with the larger half behind."""
    spare = picture - crop
    return int(u * (spare + 1)) if spare > 0 else -(-spare // 2)


def plan_crop(
    picture: tuple[int, int],
    crop: tuple[int, int],
    matrix: tuple[tuple[float, float], tuple[float, float]],
    center: tuple[float, float],
) -> CropPlan:
    """The plan of a crop (h, w) of a picture (H, W) whose pixels lie at center + matrix @ (pixel - middle of the crop).

    Positions are (x, y) in pixels, integers at the pixels' centers.
    """
    height, width = picture
    h, w = crop
    (xx, xy), (yx, yy) = matrix
    x, y = center

    # Only what is under the crop is converted to float; one pixel more on each side for the bilinear neighbours.
    reach_x, reach_y = (abs(xx) * w + abs(xy) * h) / 2 + 1, (abs(yx) * w + abs(yy) * h) / 2 + 1
    columns, rows = _clip(x - reach_x, x + reach_x, width), _clip(y - reach_y, y + reach_y, height)
    half_w, half_h = (columns.stop - columns.start) / 2, (rows.stop - rows.start) / 2

    across = torch.arange(w, dtype=torch.float32) - (w - 1) / 2
    down = (torch.arange(h, dtype=torch.float32) - (h - 1) / 2)[:, None]
    grid = torch.empty(1, h, w, 2)
    grid[0, ..., 0] = across * (xx / half_w) + (down * (xy / half_w) + ((x + 0.5 - columns.start) / half_w - 1))
    grid[0, ..., 1] = across * (yx / half_h) + (down * (yy / half_h) + ((y + 0.5 - rows.start) / half_h - 1))

    # The part under the crop ends where the picture ends, unless the crop ends first: so a pixel of the crop outside
    # the one is outside the other. The margin of 1e-6 keeps pixels on the edge in spite of rounding.
    reached = x - reach_x >= 0 and x + reach_x <= width - 1 and y - reach_y >= 0 and y + reach_y <= height - 1
    return CropPlan(rows, columns, grid, None if reached else (grid.abs().amax(-1) > 1 + 1e-6)[0])


def _clip(low: float, high: float, size: int) -> slice:
    """The pixels from low to high that exist; where none does, the nearest one."""
    start = min(max(math.floor(low), 0), size - 1)
    return slice(start, max(min(math.ceil(high) + 1, size), start + 1))


def _sample(source: Tensor, plan: CropPlan, fill: Sequence[float], mode: str) -> Tensor:
    """The picture at the pixels of a crop: [H, W] or [C, H, W] -> float32 [h, w] or [C, h, w]."""
    window = source[..., plan.rows, plan.columns].to(torch.float32)
    batch = window.reshape(1, -1, *window.shape[-2:])
    crop = F.grid_sample(batch, plan.grid, mode=mode, padding_mode="border", align_corners=False)[0]

    if plan.outside is not None:
        crop = torch.where(plan.outside, torch.tensor(fill, dtype=torch.float32).view(-1, 1, 1), crop)
    return crop.reshape(*source.shape[:-2], *crop.shape[-2:])


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean={mean!r}, std={std!r} must be three numbers each, std positive, for values of 0 .. 1")
