"""Fused operators for models of other projects, which are left as they are: see docs/accelerate.md."""

from pspnet_fast.fusion import convolution, logits, structure  # noqa: F401  they register their rules
from pspnet_fast.fusion.accelerate import accelerate, explain, is_accelerated, restore
from pspnet_fast.fusion.mode import compile_options, fuse
from pspnet_fast.fusion.report import Entry, FusionReport

__all__ = ["Entry", "FusionReport", "accelerate", "compile_options", "explain", "fuse", "is_accelerated", "restore"]
