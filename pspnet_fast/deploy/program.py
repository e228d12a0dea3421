"""A segmentation model as one exported program in standard operators: what every format is made from."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pspnet_fast.ops.operator import standard_operators

from .reduce import Reduce, fold_constants

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ExportError(ValueError):
    """A model that cannot be exported, or a file whose results are not the model's; nothing was written."""


@dataclass(frozen=True)
class Options:
    """What the exported program takes and gives.

    Attributes:
        size: (H, W) of the images; None: any.
        labels: uint8 labels [N, h, w] (int32 for more than 256 classes), else float32 logits [N, classes, h, w].
        batch: number of images; None: any.
        multiple: of which height and width are multiples where ``size`` is None.
        normalize: images uint8 [N, H, W, 3] as they are decoded, RGB, else float32 [N, 3, H, W], normalised.
        mean, std: of each channel, for pixel values from 0 to 1.
        classes: their names, for the file's metadata.
        palette: a colour (r, g, b) for each class, from 0 to 255, for the file's metadata.
    """

    size: tuple[int, int] | None = None
    labels: bool = True
    batch: int | None = None
    multiple: int = 1
    normalize: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    classes: Sequence[str] | None = None
    palette: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size must be (height, width) in pixels or None, not {self.size!r}")
        for name, value in (("batch", self.batch), ("multiple", self.multiple)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean!r} and std={self.std!r} must be three numbers each, std positive")

    def images(self, batch: int, size: Sequence[int], seed: int = 0) -> Tensor:
        """Random images of the kind that the program takes."""
        generator = torch.Generator().manual_seed(seed)
        if self.normalize:
            return torch.randint(256, (batch, *size, 3), generator=generator, dtype=torch.uint8)
        return torch.randn(batch, 3, *size, generator=generator)

    def fitting(self, size: tuple[int, int]) -> tuple[int, int]:
        """The one size that the program takes, or ``size`` raised to multiples."""
        height, width = (-(-n // self.multiple) * self.multiple for n in size)
        return self.size or (height, width)

    def prepare(self, images: Tensor) -> Tensor:
        """The model's input: float32 [N, 3, H, W], normalised."""
        if not self.normalize:
            return images
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        return (images.permute(0, 3, 1, 2).to(torch.float32) - 255 * mean) / (255 * std)

    def metadata(self) -> dict[str, str]:
        """What the file says of itself: text by key; lists as JSON."""
        lists = {"mean": self.mean, "std": self.std, "classes": self.classes, "palette": self.palette}
        normalised = "float32 [N, 3, H, W], RGB, (value / 255 - mean) / std"
        from pspnet_fast import __version__

        return {
            "producer": f"pspnet_fast {__version__}",
            "image": "uint8 [N, H, W, 3], RGB" if self.normalize else normalised,
            "output": "labels [N, h, w]" if self.labels else "logits [N, classes, h, w]",
            **{name: json.dumps(value) for name, value in lists.items() if value is not None},
        }

    def dynamic_shapes(self, axis: Callable[[str], Any]) -> tuple[dict[int, Any]] | None:
        """``axis(name)`` for each axis of the images that is not fixed, as exporters take it."""
        axes = {0: axis("batch")} if self.batch is None else {}
        if self.size is None:
            first = 1 if self.normalize else 2
            axes |= {first: axis("height"), first + 1: axis("width")}
        return (axes,) if axes else None

    def dimension(self, name: str) -> Any:
        """An axis that is not fixed, as ``torch.export`` takes it."""
        if name == "batch" or self.multiple == 1:
            return Dim.DYNAMIC
        return self.multiple * Dim(f"{name}_{self.multiple}", min=2)

    def describe(self) -> str:
        number = "any number of" if self.batch is None else self.batch
        images = f"{number} image{'' if self.batch == 1 else 's'}"
        size = "any size" if self.size is None else "{}x{}".format(*self.size)
        return f"{images} of {size}"


class Deployed(nn.Module):
    """A model with what lies before and behind it in the file."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, image: Tensor) -> Tensor:
        with standard_operators(), Reduce():
            logits = logits_of(self.model(self.options.prepare(image)))
            if not self.options.labels:
                return logits
            return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)


def logits_of(output: Any) -> Tensor:
    """The logits in what a segmentation model returns: a tensor, a tuple, ``{"out": …}`` or ``.logits``."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("out", "logits") if key in output), output)
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise ExportError(f"the model returns {type(output).__name__}, and no logits [N, classes, h, w]")
    return output


def first_line(error: Exception) -> str:
    """What a message of many lines begins with."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def exportable(model: nn.Module) -> nn.Module:
    """A copy of the model on the CPU, in evaluation mode, in float32 and NCHW."""
    return copy.deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


@torch.no_grad()
def reduced_program(model: nn.Module, options: Options) -> ExportedProgram:
    """The reduced graph of ``model``, which is :func:`exportable`, in standard operators.

    Raises:
        ExportError: ``torch.export`` cannot record the model, at any size or at this one.
    """
    size = options.fitting((97, 129))
    images = options.images(options.batch or 2, size)
    shapes = options.dynamic_shapes(options.dimension)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorded = torch.export.export(Deployed(model, options), (images,), dynamic_shapes=shapes, strict=False)
            graph = recorded.module(check_guards=False)
            fold_constants(graph)
            return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
    except ExportError:
        raise
    except Exception as error:  # torch.export raises whatever the model's code meets
        remedy = "; give size=(height, width), or multiple=32 where the model takes multiples only"
        raise ExportError(
            f"torch.export cannot record {type(model).__name__} ({type(error).__name__}: {first_line(error)})"
            + (remedy if options.size is None else "")
        ) from error
