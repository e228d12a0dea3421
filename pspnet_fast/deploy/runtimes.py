"""Other runtimes, imported where they are used; the extra ``[export]`` holds them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[Any], Any]  # numpy array in, numpy array out


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
