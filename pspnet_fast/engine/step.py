"""One optimizer step's gradients, in parts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .inference import autocast
from .state import TrainingState


def add_gradients(state: TrainingState, images: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward of this process's share of a batch, in ``optim.accumulate`` parts.

    Returns:
        float64 [5] on the device: the weighted total, main and auxiliary loss, right and labelled pixels.
    """
    accumulate = state.config.optim.accumulate
    parts = list(zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True))
    labelled = [int((y != state.info.ignore_index).sum()) for _, y in parts]  # on the CPU, before the copy
    sums = torch.zeros(5, device=state.world.device, dtype=torch.float64)
    for i, (x, y) in enumerate(parts):
        # The share of the labelled pixels: then the parts' mean losses add up to the mean over the whole batch.
        weight = labelled[i] / max(1, sum(labelled))
        if labelled[i] == 0:
            # Its mean loss would be 0/0. One made-up pixel keeps it finite, weight 0 keeps it out of every
            # gradient, and forward and backward still run, as other ranks wait for them.
            y = y.clone()
            y[0, 0, 0] = 0
            state.skipped += 1
        with _no_sync(state, more=i + 1 < len(parts)):
            sums += _add_part(state, x, y, weight)
    return sums


def _add_part(state: TrainingState, images: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Add a part's gradients; what :func:`add_gradients` returns, of this part."""
    device, config = state.world.device, state.config
    x = images.to(device, non_blocking=True).contiguous(memory_format=state.layout)
    y = labels.to(device, non_blocking=True)
    every = 8 // config.model.zoom_factor  # labels at the resolution of the output
    y = y[:, ::every, ::every].contiguous()
    with autocast(device, config.run.amp):
        prediction, main, aux = state.forward(x, y)
        loss = main + config.optim.aux_weight * aux
    state.scaler.scale(loss * weight).backward()
    with torch.no_grad():
        valid = y != state.info.ignore_index
        hits = ((prediction == y) & valid).sum()
        terms = (weight * loss, weight * main, weight * aux, hits, valid.sum())
        return torch.stack([term.double() for term in terms])


def _no_sync(state: TrainingState, *, more: bool) -> AbstractContextManager[object]:
    """Gradients travel between the ranks with the last part of a batch only."""
    return nullcontext() if state.parallel is None or not more else state.parallel.no_sync()
