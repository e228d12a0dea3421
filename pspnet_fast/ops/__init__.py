"""The fused operators: each file has public functions, their registration and their composed implementations."""

from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy, dual_cross_entropy_argmax
from pspnet_fast.ops.pyramid_concat import pyramid_concat
from pspnet_fast.ops.pyramid_conv import pyramid_conv, pyramid_conv_norm_relu
from pspnet_fast.ops.pyramid_pool import pyramid_levels, pyramid_pool, pyramid_pool_through
from pspnet_fast.ops.upsample_add import upsample_add
from pspnet_fast.ops.upsample_argmax import upsample_argmax
from pspnet_fast.ops.upsample_cross_entropy import check_labels, upsample_cross_entropy
from pspnet_fast.ops.upsample_softmax_add import upsample_softmax_add
from pspnet_fast.reference import AxisTaps, DualLoss, DualPrediction, NormStatistics

__all__ = [
    "AxisTaps",
    "DualLoss",
    "DualPrediction",
    "NormStatistics",
    "check_labels",
    "dual_cross_entropy",
    "dual_cross_entropy_argmax",
    "pyramid_concat",
    "pyramid_conv",
    "pyramid_conv_norm_relu",
    "pyramid_levels",
    "pyramid_pool",
    "pyramid_pool_through",
    "upsample_add",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_softmax_add",
]
