"""The fused operators: one file each, with the public function, its registration and its composed implementation."""

from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy, dual_cross_entropy_argmax
from pspnet_fast.ops.pyramid_concat import pyramid_concat
from pspnet_fast.ops.pyramid_conv import pyramid_conv
from pspnet_fast.ops.pyramid_pool import pyramid_pool
from pspnet_fast.ops.upsample_argmax import upsample_argmax
from pspnet_fast.ops.upsample_cross_entropy import upsample_cross_entropy
from pspnet_fast.reference import DualLoss, DualPrediction

__all__ = [
    "DualLoss",
    "DualPrediction",
    "dual_cross_entropy",
    "dual_cross_entropy_argmax",
    "pyramid_concat",
    "pyramid_conv",
    "pyramid_pool",
    "upsample_argmax",
    "upsample_cross_entropy",
]
