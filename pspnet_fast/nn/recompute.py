"""Residual blocks whose activations are recomputed in backward: less memory for more time.

``torch.utils.checkpoint`` runs a block's forward again. Two things must not happen twice: batch normalisation would
count its batch's statistics again, and a convolution is what costs time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
"""What backward computes again: nothing; normalisation, ReLU, sums and widening convolutions; or all of a block."""

RECOMPUTE: tuple[str, ...] = get_args(Recompute)

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.mkldnn_convolution.default)


def run_stage(stage: nn.Module, x: Tensor, recompute: str) -> Tensor:
    """``stage(x)``, block by block under a checkpoint where gradients are wanted and ``recompute`` is not "none"."""
    if recompute == "none" or not torch.is_grad_enabled() or not isinstance(stage, nn.Sequential):
        return stage(x)
    for block in stage:
        x = checkpoint(
            block, x, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, block, recompute)
        )
    return x


def _contexts(block: nn.Module, recompute: str) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the first forward and for the second."""
    if recompute == "full":
        return nullcontext(), _statistics_kept(block, nullcontext())
    first, second = create_selective_checkpoint_contexts(_keep_convolutions)
    return first, _statistics_kept(block, second)


def _keep_convolutions(_: Any, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what a convolution computes, unless it has more channels than what it reads.

    In a bottleneck the last convolution, 1x1, writes two thirds of the memory with a quarter of the work.
    """
    kept = operator in _CONVOLUTIONS and args[1].shape[0] <= args[1].shape[1]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _statistics_kept(block: nn.Module, context: AbstractContextManager[Any]) -> Iterator[None]:
    """Give the normalisations copies of their buffers, which the second forward may change."""
    kept = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if module.training
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        with context:
            yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
