"""PSPNet with fused kernels: the same function and checkpoints, with less work and memory."""

from importlib.metadata import PackageNotFoundError, version

from pspnet_fast.backend import BackendError, use_backend
from pspnet_fast.deploy import export_onnx
from pspnet_fast.fusion import accelerate, compile_options, explain, fuse, restore
from pspnet_fast.nn.pspnet import PSPNet
from pspnet_fast.ops import (
    AxisTaps,
    DualLoss,
    DualPrediction,
    check_labels,
    dual_cross_entropy,
    dual_cross_entropy_argmax,
    pyramid_concat,
    pyramid_conv,
    pyramid_pool,
    upsample_add,
    upsample_argmax,
    upsample_cross_entropy,
    upsample_softmax_add,
)

try:
    __version__ = version("pspnet-fast")
except PackageNotFoundError:  # imported from a source folder that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AxisTaps",
    "BackendError",
    "DualLoss",
    "DualPrediction",
    "PSPNet",
    "accelerate",
    "check_labels",
    "compile_options",
    "dual_cross_entropy",
    "dual_cross_entropy_argmax",
    "explain",
    "export_onnx",
    "fuse",
    "pyramid_concat",
    "pyramid_conv",
    "pyramid_pool",
    "restore",
    "upsample_add",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_softmax_add",
    "use_backend",
]
