"""Models for other runtimes: ONNX, OpenVINO, torch.export. See docs/deploy.md."""

from pspnet_fast.ops.operator import decompositions

from .formats import OPSET, SUFFIXES, export_files, export_onnx
from .program import ExportError, Options
from .runtimes import Comparison

__all__ = [
    "OPSET",
    "SUFFIXES",
    "Comparison",
    "ExportError",
    "Options",
    "decompositions",
    "export_files",
    "export_onnx",
]
