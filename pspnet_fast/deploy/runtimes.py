"""Other runtimes, imported where they are used (the extra ``[export]`` holds them), and files in them compared with
their model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .program import ExportError, Options, first_line, logits_of

Run = Callable[[Any], Any]  # numpy array in, numpy array out
SIZES = ((65, 97), (130, 190), (129, 193))  # of files for any size; not those that the program was recorded at


def require(name: str) -> Any:
    """The module ``name``.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed ({error}): pip install 'pspnet-fast[export]'") from error


def onnxruntime_run(file: str | Path | bytes, threads: int | None = None) -> Run:
    """An ONNX file, or its bytes, in ONNX Runtime on the CPU; on all cores where ``threads`` is None."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    content = file if isinstance(file, bytes) else str(file)
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino_run(file: str | Path, threads: int | None = None, precision: str = "f32") -> Run:
    """An OpenVINO or ONNX file in OpenVINO on the CPU.

    Args:
        precision: "f32" or "bf16". OpenVINO's own choice is bf16 on processors that multiply in it.
    """
    openvino = require("openvino")
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    if threads is not None:
        config |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(file), "CPU", config)
    return lambda images: compiled([images])[0]


@dataclass(frozen=True)
class Comparison:
    """The results of a file compared with its model's on random images of one size.

    Attributes:
        size: (height, width) of the images.
        difference: the largest difference of the logits; of labels also the most by which a pixel's label falls behind
            the best one in the model's logits. Relative to the model's largest logit.
        equal_labels: the share of pixels with the model's label.
    """

    batch: int
    size: tuple[int, int]
    difference: float
    equal_labels: float

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.batch} x {height}x{width}: difference {self.difference:.1e}, labels {self.equal_labels:.4%} equal"
        )


@torch.no_grad()
def compare(runs: Sequence[Run], model: nn.Module, options: Options, what: str, tolerance: float) -> list[Comparison]:
    """Run a file and ``model``, at three sizes where it takes any.

    Args:
        runs: of the file; of a file of labels also of the same graph up to its logits, since the labels of random
            images may be of one class whatever is wrong.

    Raises:
        ExportError: they differ by more than ``tolerance``.
    """
    sizes = [options.fitting(size) for size in (SIZES if options.size is None else SIZES[:1])]
    found = []
    for seed, size in enumerate(sizes):
        batch = options.batch or 1 + seed % 2
        images = options.images(batch, size, seed)
        with _explained("the model", batch, size):
            expected = logits_of(model(options.prepare(images)))
        with _explained(what, batch, size):
            actual = [torch.as_tensor(run(images.numpy())) for run in runs]
        both = [_differences(result, expected, what, result is actual[0] and options.labels) for result in actual]
        difference, equal_labels = max(d for d, _ in both), min(equal for _, equal in both)
        found.append(Comparison(batch, size, difference, equal_labels))
        if not found[-1].difference <= tolerance:
            raise ExportError(
                f"{what} differs from the model: {found[-1]}, where {tolerance:.0e} of the largest logit is allowed. "
                "Nothing was written"
            )
    return found


@contextmanager
def _explained(what: str, batch: int, size: tuple[int, int]) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # every model and runtime raises its own
        raise ExportError(
            f"{what} cannot run {batch} x {size[0]}x{size[1]} ({first_line(error)}). Give size=(height, width), or "
            "multiple=32 where the model takes multiples only. Nothing was written"
        ) from error


def _differences(actual: torch.Tensor, expected: torch.Tensor, what: str, are_labels: bool) -> tuple[float, float]:
    best, labels = expected.max(1)
    shape = labels.shape if are_labels else expected.shape
    if actual.shape != shape:
        raise ExportError(f"{what} gives {list(actual.shape)}, not {list(shape)}. Nothing was written")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    if are_labels:
        behind = best - expected.gather(1, actual.long()[:, None].clamp(0, expected.shape[1] - 1))[:, 0]
        return (behind.max() / scale).item(), (actual == labels).float().mean().item()
    equal = (actual.argmax(1) == labels).float().mean().item()
    return ((actual - expected).abs().max() / scale).item(), equal
