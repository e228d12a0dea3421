"""The rule for ``conv2d`` of an upsampled map, or of a concatenation of such maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pspnet_fast.fusion.conv_plans import conv_plan, refusal
from pspnet_fast.fusion.cost import pixels
from pspnet_fast.fusion.deferred import RULES, Deferred
from pspnet_fast.fusion.fused import Plan, run, supported
from pspnet_fast.layout import format_of, suggests_channels_last


def _conv2d(
    func: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not isinstance(input, Deferred) or input.cell.adjoint or input.cell.session is None:
        return NotImplemented
    session = input.cell.session
    reason = _reason(input, weight, bias, stride, padding, dilation, groups)
    plan = None if reason else conv_plan(input.cell.segments, weight)
    if reason or plan is None:
        session.refused("conv2d", reason or "no form without the map would be faster")
        return NotImplemented

    segments = input.cell.segments
    stored = sum(s.channels for s in segments if s.geometry is not None) + (len(segments) > 1) * input.shape[1]
    size = stored * input.element_size() * input.shape[0] * pixels(input.shape[2:])
    flop = plan.flop_saved(segments, weight, input.shape[0])
    session.fused("conv2d", plan.name, size * (input.cell.value is None), flop)
    # As the stock convolution does, answer in the layout of the full map and the weight, whatever the parts are in.
    form = format_of(suggests_channels_last(input) or suggests_channels_last(weight))

    def fused(leaves: list[Tensor], others: list[Any]) -> Tensor:
        result = plan.fused([t.contiguous(memory_format=form) for t in leaves], others)
        return result.contiguous(memory_format=form)

    def stock(full: Tensor, others: list[Any]) -> Tensor:
        result: Tensor = func(full, others[0], others[1], stride, padding, dilation, groups)
        return result

    return run(Plan(fused, stock, plan.geometry), input, weight, bias)


def _reason(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> str | None:
    """Why the stock convolution has to run, or None."""
    cell = x.cell
    if not cell.session.conv or not supported():
        return "switched off here"
    if cell.kind != "map" or not cell.fusable:
        return "the map was changed"
    if any(t is not None and type(t) not in (Tensor, torch.nn.Parameter) for t in (weight, bias)) or weight is None:
        return "weight or bias is no plain tensor"
    reason = refusal(weight, stride, padding, dilation, groups)
    if reason is not None:
        return reason
    if weight.shape[1] != x.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return "the stock operator's own check"
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x.device.type):
        return "the stock operator's own check"
    return None


RULES[torch.conv2d] = _conv2d
